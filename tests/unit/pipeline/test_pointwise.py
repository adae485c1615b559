"""Encode, one trip through the batcher, interpret."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rerankd.batching.admission import Estimate
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import ScoreOptions, Terms, Unmetered
from rerankd.errors import ScoringFailed
from rerankd.pipeline.items import items_of
from rerankd.pipeline.pointwise import PointwiseStage
from rerankd.scorers.base import EncodedPairs
from rerankd.tasks.classify import Classify
from rerankd.tasks.encoding import Encoding
from tests.fakes import ArithmeticEngine, RecordingObserver, WordScorer, running_batcher, score_of


async def test_every_document_gets_its_own_score_in_request_order() -> None:
    documents = ["a b c", "d", "e f g h i", "d"]
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(pairs=2), RecordingObserver()) as batcher:
            stage = PointwiseStage(WordScorer(), batcher, tokenizing)
            scores = await stage.score("query", documents, ScoreOptions())
    assert scores.values.tolist() == [score_of("query", document) for document in documents]
    assert scores.tokens.tolist() == [5, 3, 7, 3]
    assert scores.dropped.tolist() == [0, 0, 0, 0]
    assert scores.cached is None
    assert scores.timings.tokenize_s > 0
    assert scores.timings.inference_s > 0


class _QuickScorer(WordScorer):
    """Encodes plain texts in no time, and tells in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def is_quick(self, query: str, documents: Sequence[str]) -> bool:
        return query.isascii() and all(map(str.isascii, documents))

    def encode(self, query: str, documents: Sequence[str], **wishes: Any) -> EncodedPairs[Encoding]:
        self.threads.append(threading.current_thread().name)
        return super().encode(query, documents, **wishes)


@pytest.mark.parametrize(
    ("documents", "threads"),
    [
        (["a b", "c"], 0),
        (["a b", "\u00e9"], 1),
        (["x" * (1 << 15), "y"], 1),
        (["x"] * 61, 1),
    ],
)
async def test_a_few_quick_texts_are_encoded_without_a_thread(documents: list[str], threads: int) -> None:
    scorer = _QuickScorer()
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(pairs=2), RecordingObserver()) as batcher:
            scores = await PointwiseStage(scorer, batcher, tokenizing).score("query", documents, ScoreOptions())
    assert scores.values.tolist() == [score_of("query", document) for document in documents]
    assert len(scorer.threads) == 1
    assert sum(name.startswith("tokenize") for name in scorer.threads) == threads


class _Writer(WordScorer):
    """Its model writes seven tokens about a document before it scores it."""

    def written(self, _: object) -> int:
        return 7


class _Meter(Unmetered):
    def __init__(self) -> None:
        self.computed = 0

    def compute(self, tokens: int) -> None:
        self.computed += tokens


async def test_what_a_model_writes_counts_as_what_it_reads() -> None:
    meter = _Meter()
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver()) as batcher:
            stage = PointwiseStage(_Writer(), batcher, tokenizing)
            scores = await stage.score("query", ["a b c", "d"], ScoreOptions(terms=Terms(meter=meter)))
    assert scores.tokens.tolist() == [5 + 7, 3 + 7]
    assert meter.computed == scores.tokens.sum()


async def test_documents_are_cut_at_what_the_caller_allows_and_the_rest_is_counted() -> None:
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver()) as batcher:
            stage = PointwiseStage(WordScorer(), batcher, tokenizing)
            scores = await stage.score("query", ["a b c", "a b"], ScoreOptions(max_tokens_per_doc=2))
    assert scores.values.tolist() == [score_of("query", "a b")] * 2
    assert scores.dropped.tolist() == [1, 0]


async def test_documents_that_the_caller_has_cut_short_do_not_make_others_look_short() -> None:
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver()) as batcher:
            stage = PointwiseStage(WordScorer(), batcher, tokenizing)
            before = batcher.lengths.forecast(Estimate(characters=1000, items=1, longest=512)).work
            for _ in range(20):
                await stage.score("query", ["a long document " * 50], ScoreOptions(max_tokens_per_doc=2))
            assert batcher.lengths.forecast(Estimate(characters=1000, items=1, longest=512)).work == before


async def test_documents_that_the_caller_will_have_cut_short_take_little_room() -> None:
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver(), max_waiting_tokens=100) as batcher:
            stage = PointwiseStage(WordScorer(), batcher, tokenizing)
            documents = ["a long document " * 50] * 4
            async with batcher.admit(Estimate(characters=200, items=1, longest=512), Terms()):
                scores = await stage.score("query", documents, ScoreOptions(max_tokens_per_doc=2))
    assert scores.dropped.tolist() == [148] * 4


async def test_a_poisoned_document_fails_its_request() -> None:
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver()) as batcher:
            stage = PointwiseStage(WordScorer(), batcher, tokenizing)
            with pytest.raises(ScoringFailed):
                await stage.score("query", ["fine", "some poison"], ScoreOptions())
            assert (await stage.score("query", ["fine"], ScoreOptions())).values[0] == score_of("query", "fine")


class _SlowScorer(WordScorer):
    """Remembers how many documents it was given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[Encoding]:
        self.calls.append(len(documents))
        time.sleep(0.01)
        return super().encode(query, documents, max_document_tokens=max_document_tokens)


@pytest.mark.parametrize(("documents", "calls"), [(1, [1]), (100, [100]), (101, [100, 1]), (340, [100, 100, 100, 40])])
async def test_a_large_request_is_tokenized_in_portions_and_none_is_lost(documents: int, calls: list[int]) -> None:
    scorer = _SlowScorer()
    texts = [f"text {number}" for number in range(documents)]
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver()) as batcher:
            scores = await PointwiseStage(scorer, batcher, tokenizing).score("query", texts, ScoreOptions())
    assert scorer.calls == calls
    assert scores.values.tolist() == [score_of("query", text) for text in texts]
    assert len(scores.dropped) == documents


async def test_a_small_request_does_not_wait_until_a_large_one_is_tokenized() -> None:
    scorer = _SlowScorer()
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver()) as batcher:
            stage = PointwiseStage(scorer, batcher, tokenizing)
            large = asyncio.ensure_future(stage.score("query", ["a"] * 5000, ScoreOptions()))
            await asyncio.sleep(0)
            await stage.score("query", ["a"], ScoreOptions(terms=Terms(urgent=True)))
            assert not large.done()
            assert scorer.calls[:2] in ([100, 1], [1, 100])
            await large


async def test_a_request_that_goes_away_is_not_tokenized_to_its_end() -> None:
    scorer = _SlowScorer()
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(ArithmeticEngine(), RecordingObserver()) as batcher:
            stage = PointwiseStage(scorer, batcher, tokenizing)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stage.score("query", ["a"] * 10_000, ScoreOptions()), timeout=0.03)
            await stage.score("query", ["a"], ScoreOptions())
    assert len(scorer.calls) < 10


def test_equal_encodings_of_different_scopes_share_no_pass() -> None:
    encoding = Encoding(np.array([1, 2, 3], dtype=np.int64), 1)

    def identity(scope: str) -> bytes:
        (item,) = items_of(Classify(outputs=1), [encoding], scope=scope)
        return item.identity

    assert len({identity(scope) for scope in ("", "one key", "another key")}) == 3
    assert identity("one key") == identity("one key")
