"""The prompt of a query over documents: as much of them as the model reads, at the cost of about that much."""

import json
from collections.abc import Sequence
from random import Random

import pytest

import rerankd.scorers.listwise_embedding
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.listwise_embedding import ListwiseEmbedding
from rerankd.scorers.tokenizer_files import ids_of
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> ListwiseEmbedding:
    folder = tokenizer_folder(tmp_path_factory.mktemp("e2rank"), "qwen3")
    config = folder / "config.json"
    known = json.loads(config.read_text()) if config.exists() else {}
    config.write_text(json.dumps({**known, "hidden_size": 32, "max_position_embeddings": 2048}))
    return ListwiseEmbedding.load(ScorerSpec(folder=folder, templates=(SHIPPED_TEMPLATES,)))


def _words(length: int, *, count: int) -> str:
    return " ".join("".join(Random(number).choices("abcdefgh", k=length)) for number in range(count))


@pytest.mark.parametrize(
    "documents", [[_words(63, count=1024)] * 20, [_words(2, count=1024)] * 20], ids=["long", "short"]
)
def test_a_prompt_fills_the_model_and_megabytes_are_not_tokenized(
    scorer: ListwiseEmbedding, documents: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room, read = scorer.room(""), []

    def counted(*args: object) -> object:
        read.append(len(str(args[1])))
        return ids_of(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rerankd.scorers.listwise_embedding, "ids_of", counted)
    prompt = scorer.query_over("what is asked", documents, None)
    (dropped,) = scorer.encode("query", [prompt], max_tokens=None).dropped
    assert dropped == 0
    assert len(prompt) > room / 2
    assert all(characters <= 32 * 2048 for characters in read)
