"""What is wrong with a field of a request is said in the words that settings have too."""

from collections.abc import Iterator
from typing import Any

import pytest

from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import Dialect, RequestLimits
from rerankd.api.dialects.cohere import COHERE_V2
from rerankd.api.dialects.nim import NIM
from rerankd.api.dialects.vllm_score import VLLM_SCORE
from rerankd.domain import ImageLimits
from rerankd.errors import InvalidRequest, RerankError

_LIMITS = RequestLimits(
    documents=50, queries=5, query_chars=32_768, rank_fields=5, fields=20, images=ImageLimits(images=10, bytes=10_000)
)
_ODD: list[object] = [
    "", "many", "1", 0, -1, 1e300, 1.5, True, None, [], [1], ["a"], [[]], {}, {"text": 1}, {"a": {}}, [{}],
    [{"text": None}], {"tokens": "many"}, {"window": 0}, {"truncate": 5},
]  # fmt: skip
# How pydantic says it, to programmers.
_THEIRS = ("Input should", "Value error", "Extra inputs", "Field required", "unable to", "should ", "instance of")


def _refusal(dialect: Dialect, body: dict[str, Any], *, strict: bool = False) -> str | None:
    try:
        dialect.parse(body, b"", limits=_LIMITS, strict=strict)
    except RerankError as error:
        return str(error)
    return None


def _refusals(dialect: Dialect) -> Iterator[str]:
    for field in [*dialect.example, *dialect.body.model_fields]:
        for value in _ODD:
            told = _refusal(dialect, {**dialect.example, field: value}, strict=True)
            if told:
                yield told


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_no_odd_value_is_told_in_another_librarys_words(dialect: Dialect) -> None:
    refusals = list(_refusals(dialect))
    assert len(refusals) >= 2 * len(_ODD)
    for told in refusals:
        assert not [theirs for theirs in _THEIRS if theirs in told], told


@pytest.mark.parametrize(
    ("dialect", "change", "message"),
    [
        (COHERE_V2, {"top_n": "many"}, "top_n must be a whole number, not 'many'"),
        (COHERE_V2, {"top_n": [1]}, "top_n must be a whole number, not a list"),
        (COHERE_V2, {"documents": ...}, "documents is missing"),
        (
            COHERE_V2,
            {"truncation": "drop"},
            "truncation must be one of 'truncate', 'error', 'chunk' or 'extract', not 'drop'",
        ),
        (COHERE_V2, {"passages": 5}, "passages must be an object, not 5"),
        (COHERE_V2, {"passages": {"tokens": "x"}}, "passages.tokens must be a whole number, not 'x'"),
        (COHERE_V2, {"max_tokens_per_doc": -1}, "max_tokens_per_doc must be at least 0, not -1"),
        (NIM, {"passages": [{}]}, "passages[0].text is missing"),
        (NIM, {"query": 5}, "query must be an object or must be a string, not 5"),
        (NIM, {"query": {}}, "query.text is missing; query must be a string, not an object"),
        (COHERE_V2, {"prune": {"threshold": 5}}, "prune.threshold must be at most 1, not 5"),
        (VLLM_SCORE, {"text_2": ...}, "text_2 is missing"),
        (VLLM_SCORE, {"text_2": ["a", None]}, "text_2[1] must be a string, not null"),
    ],
)
def test_the_field_the_phrase_and_the_value(dialect: Dialect, change: dict[str, Any], message: str) -> None:
    body = {name: value for name, value in {**dialect.example, **change}.items() if value is not ...}
    with pytest.raises(InvalidRequest) as refused:
        dialect.parse(body, b"", limits=_LIMITS)
    assert str(refused.value) == message
