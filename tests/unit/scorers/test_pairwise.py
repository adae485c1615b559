"""The scorer `pairwise`: what is written of two documents, what is cut. Scores are compared in tests/integration."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.pairwise import Pairwise
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

QUERY = "what is the capital of France?"
PROMPT = "Query: {} Document0: {} Document1: {} Relevant:"
LONG = "the capital of France " * 500


def load(folder: Path, *, max_length: int | None = None) -> Pairwise:
    options = {"template": "duot5"}
    return Pairwise.load(
        ScorerSpec(folder=folder, max_length=max_length, templates=[SHIPPED_TEMPLATES], options=options)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tokenizer_folder(tmp_path, "t5")


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_two_documents_are_read_as_one_prompt(folder: Path, tokenizer: Tokenizer) -> None:
    documents = ["Paris  is\nit ", "Wien", "Berlin and Madrid"]
    comparisons = [(0, 1), (1, 0), (2, 0), (1, 1)]
    encoded = load(folder).encode_comparisons(QUERY, documents, comparisons, max_document_tokens=None)
    for (first, second), encoding in zip(comparisons, encoded.encodings, strict=True):
        whole = tokenizer.encode(PROMPT.format(QUERY, documents[first], documents[second])).ids
        assert encoding.ids.tolist() == whole
    assert encoded.dropped.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("documents", [(LONG, LONG), (LONG, "Wien"), ("Wien", LONG), ("Wien " * 20, LONG)])
def test_the_longer_document_is_cut_and_the_prompt_keeps_its_end(
    folder: Path, tokenizer: Tokenizer, documents: tuple[str, str]
) -> None:
    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    fixed = len(tokenizer.encode(PROMPT.format(QUERY, "", "")).ids)
    scorer = load(folder, max_length=fixed + 100)
    encoded = scorer.encode_comparisons(QUERY, documents, [(0, 1)], max_document_tokens=None)
    first, second = map(ids, documents)
    kept = min(len(first), max(50, 100 - len(second)))
    head, middle, tail = ids(f"Query: {QUERY} Document0:"), ids("Document1:"), ids("Relevant:</s>")
    assert encoded.encodings[0].ids.tolist() == [*head, *first[:kept], *middle, *second[: 100 - kept], *tail]
    assert encoded.dropped.tolist() == [len(first) - kept]


def test_documents_that_come_back_are_read_the_same_way(folder: Path) -> None:
    scorer = load(folder)
    comparisons = [(0, 1), (1, 0), (2, 1)]
    documents = [LONG, "Wien", "Berlin and Madrid " * 20]
    for most in (None, 30, 5, 30, None):
        encoded = scorer.encode_comparisons(QUERY, documents, comparisons, max_document_tokens=most, owner="ours")
        fresh = load(folder).encode_comparisons(QUERY, documents, comparisons, max_document_tokens=most)
        for ours, theirs in zip(encoded.encodings, fresh.encodings, strict=True):
            assert ours.ids.tolist() == theirs.ids.tolist()
        assert encoded.dropped.tolist() == fresh.dropped.tolist()


def test_a_caller_may_read_less_of_each_document(folder: Path) -> None:
    encoded = load(folder).encode_comparisons(QUERY, [LONG, "Wien"], [(0, 1), (1, 0)], max_document_tokens=5)
    assert len({len(one.ids) for one in encoded.encodings}) == 1
    assert encoded.dropped[0] > encoded.dropped[1] == 0


def test_what_the_prompt_has_no_room_for_is_refused(folder: Path) -> None:
    scorer = load(folder)
    with pytest.raises(InvalidRequest, match="before any document"):
        scorer.encode_comparisons(LONG, ["a", "b"], [(0, 1)], max_document_tokens=None)
    with pytest.raises(InvalidRequest, match="does not take an instruction"):
        scorer.encode_comparisons(QUERY, ["a", "b"], [(0, 1)], max_document_tokens=None, instruction="Judge.")


def test_a_document_cannot_end_the_prompt(folder: Path, tokenizer: Tokenizer) -> None:
    (encoding,) = (
        load(folder).encode_comparisons(QUERY, ["a</s>", "<pad>"], [(0, 1)], max_document_tokens=None).encodings
    )
    ids = encoding.ids.tolist()
    assert ids.count(tokenizer.token_to_id("</s>")) == 1
    assert tokenizer.token_to_id("<pad>") not in ids


def test_a_tokenizer_whose_tokens_go_beyond_white_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ends each token at white space"):
        load(tokenizer_folder(tmp_path, "qwen3"))
