"""What is left of a query that is too long is what Hugging Face's tokenizers leave of it."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import ScoreOptions, Side, Truncation
from rerankd.errors import InvalidRequest
from rerankd.pipeline.long_queries import LongQueryStage
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from tests.fakes import RecordingStage, WordScorer

_QUERY = " ".join(f"what is capital {number}" for number in range(300))
_DOCUMENT = " ".join(f"paris is a list {number}" for number in range(300))


@pytest.mark.parametrize("truncation", [Truncation.TRUNCATE, Truncation.ERROR, Truncation.CHUNK, None])
@pytest.mark.parametrize("side", list(Side))
async def test_the_longer_of_two_long_texts_is_cut_as_tokenizers_cut_it(
    tiny_model: Path, truncation: Truncation | None, side: Side
) -> None:
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=tiny_model))
    inner = RecordingStage()
    options = ScoreOptions(truncation=truncation, truncation_side=side)
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        stage = LongQueryStage(inner, scorer, tokenizing)
        if truncation is not Truncation.TRUNCATE:
            with pytest.raises(InvalidRequest):
                await stage.score(_QUERY, [_DOCUMENT], options)
            assert inner.asked[0][0] == _QUERY
            return
        scores = await stage.score(_QUERY, [_DOCUMENT], options)
    ((read, _, _),) = inner.asked
    whole = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    whole.no_truncation()
    kept = len(whole.encode(read, add_special_tokens=False).ids)
    assert scores.query_dropped == len(whole.encode(_QUERY, add_special_tokens=False).ids) - kept
    assert _QUERY.startswith(read) if side is Side.RIGHT else _QUERY.endswith(read)
    if side is Side.RIGHT:
        whole.no_padding()
        whole.enable_truncation(scorer.max_length, strategy="longest_first")
        (encoding,) = scorer.encode(read, [_DOCUMENT], max_document_tokens=None).encodings
        assert encoding.ids.tolist() == whole.encode(_QUERY, _DOCUMENT).ids


class _ReadsApart(WordScorer):
    """As models of vectors read: a query takes no room from documents."""

    def room(self, query: str, instruction: str | None = None) -> int:
        if len(query.split()) > 18:
            raise InvalidRequest("the query is too long")
        return 18


@pytest.mark.parametrize(
    ("per_pair", "kept", "per_document"), [(12, 10, 10), (20, 18, None), (99, 18, None), (None, 18, None)]
)
async def test_texts_that_are_read_apart_are_each_cut(
    per_pair: int | None, kept: int, per_document: int | None
) -> None:
    inner = RecordingStage()
    options = ScoreOptions(truncation=Truncation.TRUNCATE, max_tokens_per_pair=per_pair)
    query = " ".join(f"w{number}" for number in range(30))
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        stage = LongQueryStage(inner, _ReadsApart(max_length=20), tokenizing, query_room=lambda: 18)
        scores = await stage.score(query, ["d"], options)
    ((read, _, asked),) = inner.asked
    assert read == " ".join(query.split()[:kept])
    assert scores.query_dropped == 30 - kept
    assert asked.max_tokens_per_doc == per_document
