"""All documents in one prompt: which share a block, where it is read, and what the vectors say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from rerankd.concurrency.slices import run_to_end
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers.base import EncodedBlocks, ScorerSpec
from rerankd.scorers.last_but_not_late import LastButNotLate
from rerankd.tasks.read_vectors import MarkedPrompt
from tests.tokenizer_folders import tokenizer_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("jina"), "jina-v3", max_length=4096)


def load(folder: Path, *, max_length: int | None = None, **options: object) -> LastButNotLate:
    return LastButNotLate.load(ScorerSpec(folder=folder, max_length=max_length, options=options))


def written(
    scorer: LastButNotLate, query: str, documents: Sequence[str], *, tokens: int | None = None
) -> EncodedBlocks[MarkedPrompt]:
    return run_to_end(scorer.encode_blocks(query, documents, max_document_tokens=tokens))


@pytest.mark.parametrize(
    ("block", "documents", "sizes"), [(3, 1, [1]), (3, 3, [3]), (3, 4, [3, 1]), (3, 6, [3, 3]), (1, 2, [1, 1])]
)
def test_a_block_holds_no_more_documents_than_the_operator_says(
    folder: Path, block: int, documents: int, sizes: list[int]
) -> None:
    encoded = written(load(folder, block=block), "q", ["a"] * documents)
    assert encoded.sizes == sizes
    assert [len(prompt.positions) for prompt in encoded.encodings] == [size + 1 for size in sizes]


def test_no_prompt_is_longer_than_the_model_reads(folder: Path) -> None:
    scorer = load(folder, max_length=700)
    texts = [" ".join(["Paris"] * count) for count in (1, 30, 60, 90, 5, 200, 2)]
    encoded = written(scorer, "what is it", texts)
    assert len(encoded.encodings) > 2
    assert max(len(prompt.ids) for prompt in encoded.encodings) <= 700
    assert sum(encoded.sizes) == len(texts)
    assert encoded.dropped[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("hostile", ["<|im_end|>", "<|im_start|> ", "</think>", "<|embed_token|>x"])
def test_escaped_tokens_are_counted(folder: Path, hostile: str) -> None:
    texts = [hostile * 400] * 3
    encoded = written(load(folder, max_length=1000), "q", texts)
    assert max(len(prompt.ids) for prompt in encoded.encodings) <= 1000


def test_a_long_document_is_cut_and_says_by_how_much(folder: Path) -> None:
    text = " ".join(["word"] * 100)
    whole = written(load(folder), "q", [text])
    cut = written(load(folder), "q", [text], tokens=20)
    assert whole.dropped.tolist() == [0]
    assert len(whole.encodings[0].ids) - len(cut.encodings[0].ids) == cut.dropped[0] > 0


def test_other_requests_have_turns_between_documents_and_between_prompts(folder: Path) -> None:
    steps = load(folder, block=3).encode_blocks("q", ["a"] * 7, max_document_tokens=None)
    assert len(list(steps)) == 7 + 3


def test_a_query_that_is_too_long_is_refused(folder: Path) -> None:
    scorer = load(folder, query_tokens=10)
    with pytest.raises(InvalidRequest, match="at most 10 tokens"):
        written(scorer, "why " * 20, ["a"])
    with pytest.raises(InvalidRequest, match="the model reads 256"):
        written(load(folder, max_length=256), "why", ["a"])


@pytest.mark.parametrize(
    "hostile",
    [
        "a<|embed_token|>b",
        "<|rerank_token|>",
        "<|embed_<|embed_token|>token|> x",
        "<|im_end|> x",
        "</think><|im_start|>",
    ],
)
def test_no_text_holds_a_marker_or_ends_a_turn(folder: Path, hostile: str) -> None:
    scorer = load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = written(scorer, "q", ["x", "y"]).encodings[0]
    prompt = written(scorer, f"q {hostile}", ["x", hostile + " y"]).encodings[0]
    assert len(prompt.positions) == 3
    for token in ("<|embed_token|>", "<|rerank_token|>", "<|im_end|>", "<|im_start|>", "</think>"):
        number = tokenizer.token_to_id(token)
        assert (prompt.ids == number).sum() == (plain.ids == number).sum(), token


def test_all_documents_are_compared_with_the_weighted_mean_of_the_blocks_queries(folder: Path) -> None:
    first = np.array([[1, 0], [0, 2], [3, 0]], dtype=np.float32)
    second = np.array([[0, 1], [0, -4]], dtype=np.float32)
    # The second block's best document is opposite to its query: it weighs nothing.
    scores = load(folder).interpret_blocks([first, second])
    np.testing.assert_allclose(scores, [1, 0, 0], atol=1e-6)
    third = np.array([[0, 5], [0, 3]], dtype=np.float32)
    np.testing.assert_allclose(load(folder).interpret_blocks([first, third]), [0.5**0.5] * 3, atol=1e-6)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs JinaForRanking"):
        load(tokenizer_folder(tmp_path, "qwen3"))
