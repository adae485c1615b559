"""What of a text goes to a remote model: estimated tokens, cuts and passages."""

from pathlib import Path
from typing import Any

import pytest

from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.remote import Remote
from rerankd.tasks.rank import TextPair

TEXTS = ["", "a", "four", "five!", "bees live in hives, and nobody knows", "größer als 東京 🐝🐝", "x" * 99, " \n a  b"]


def scorer(*, max_length: int | None = None, protocol: str = "cohere", **options: Any) -> Remote:
    return Remote.load(ScorerSpec(folder=Path(), max_length=max_length, options={"protocol": protocol, **options}))


def pairs(remote: Remote, *documents: str, query: str = "q", most: int | None = None) -> list[tuple[str, int]]:
    encoded = remote.encode(query, documents, max_document_tokens=most)
    return [(pair.document, dropped) for pair, dropped in zip(encoded.encodings, encoded.dropped.tolist(), strict=True)]


def test_documents_are_cut_to_what_is_left_beside_the_query() -> None:
    assert pairs(scorer(max_length=16), "d" * 60, "d" * 61, "d" * 70) == [("d" * 60, 0), ("d" * 60, 1), ("d" * 60, 3)]


def test_a_cut_does_not_split_a_character() -> None:
    assert pairs(scorer(), "東京都", "🐝🐝", most=1) == [("東", 2), ("🐝", 1)]


def test_what_is_no_unicode_is_replaced() -> None:
    encoded = scorer().encode("q\ud800", ["d\udfff"], max_document_tokens=None)
    assert encoded.encodings == [TextPair("q?", "d?")]


def test_a_query_without_room_for_a_document_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"leaves no room for a document: it has about 16 tokens, .* reads 16"):
        scorer(max_length=16).room("q" * 64)


def test_an_instruction_is_for_protocols_that_have_one() -> None:
    with pytest.raises(InvalidRequest, match="does not take an instruction"):
        scorer().room("q", "be strict")
    assert scorer(protocol="rerankd", max_length=100).room("query", "be strict") == 100 - 2 - 3


def test_edges_cover_a_text_without_gaps_four_bytes_each() -> None:
    for text, edges in zip(TEXTS, scorer().edges(TEXTS), strict=True):
        assert edges.characters[0] == 0
        assert edges.characters[-1] == len(text)
        assert (edges.characters[1:] > edges.characters[:-1]).all(), text
        assert abs(edges.tokens - len(text.encode()) / 4) <= 1, text
        assert edges.words[0]
        assert edges.words[-1]


def test_edges_lie_at_the_ends_of_words_where_there_are_any() -> None:
    text = "bees live in hives, and nobody knows"
    (edges,) = scorer().edges([text])
    at_words = [text[start] for start in edges.characters[1:-1][edges.words[1:-1]].tolist()]
    assert at_words
    assert set(at_words) == {" "}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "ftp"}, "protocol must be one of 'cohere', 'jina'"),
        ({"protocol": "nim", "scores": "relevance"}, "protocol 'nim' gives scores = 'logit', not 'relevance'"),
        ({"protocol": "openai", "scores": "relevance"}, "protocol 'openai' gives scores = 'logit'"),
        ({"protocol": "openai", "user": "{query} {text}"}, "user may have {query}, {document} and {instruction} in it"),
        ({"protocol": "openai", "user": "{query}"}, "user has no {document} in it; add it"),
        ({"protocol": "openai", "yes": ""}, "yes must not be empty"),
    ],
)
def test_unusable_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        scorer(**options)
    assert message in str(refused.value)
