"""Which documents are read where the scores of others can be estimated, and what the answer says of the rest."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import AnchorPlan, ScoreOptions, Scores, Terms
from rerankd.errors import DeadlineExceeded, Overloaded
from rerankd.pipeline.anchored import AnchorStage
from rerankd.scorers.anchors import Anchors, digest_of
from tests.fakes import RecordingStage

_TEXTS = [f"text {number}" for number in range(12)]
# Of rank 2. The query's scores are the sum of both columns.
_SCORES = np.array([[number % 5, (7 * number) % 11] for number in range(12)], dtype=np.float32)
_TRUTH = dict(zip(_TEXTS, _SCORES.sum(axis=1).tolist(), strict=True))
_PLAN = AnchorPlan(file="anchors.npz", anchors=3, depth=6, cutoff=1e-6)


class _SecondTime(RecordingStage):
    """Fails when it is asked again."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self._then = failure

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        scores = await super().score(query, documents, options)
        self.failure = self._then
        return scores


class _Partly(RecordingStage):
    """It had time for the first two documents."""

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        scores = await super().score(query, documents, options)
        return replace(scores, scored=np.arange(len(documents)) < 2)


class _Waiting(RecordingStage):
    """Says when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.Event()

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        self.began.set()
        return await super().score(query, documents, options)


@asynccontextmanager
async def _opened(inner: RecordingStage, plan: AnchorPlan = _PLAN) -> AsyncIterator[AnchorStage]:
    inner.values = _TRUTH
    with SharedWorker.open(name="tokenize", threads=1) as worker:
        yield AnchorStage(inner, worker, Anchors(_SCORES, list(map(digest_of, _TEXTS)), identity=""), plan=plan)


def _read(inner: RecordingStage) -> list[list[str]]:
    return [documents for _, documents, _ in inner.asked]


async def test_the_first_are_read_and_then_the_best_of_the_others() -> None:
    async with _opened(inner := RecordingStage()) as stage:
        scores = await stage.score("q", _TEXTS, ScoreOptions(top_n=2))
    best = sorted(sorted(_TEXTS[3:], key=lambda text: -_TRUTH[text])[:3], key=_TEXTS.index)
    assert _read(inner) == [_TEXTS[:3], best]
    assert scores.scored is not None
    assert scores.scored.tolist() == [text in (*_TEXTS[:3], *best) for text in _TEXTS]
    assert scores.values[scores.scored].tolist() == [_TRUTH[text] for text in (*_TEXTS[:3], *best)]
    assert scores.tokens.tolist() == [2 if read else 0 for read in scores.scored]
    assert scores.skipped == 6


async def test_documents_outside_of_the_corpus_are_read_with_the_anchors() -> None:
    async with _opened(inner := RecordingStage()) as stage:
        scores = await stage.score("q", ["new", *_TEXTS, "newer"], ScoreOptions())
    assert _read(inner)[0] == ["new", *_TEXTS[:3], "newer"]
    assert len(_read(inner)[1]) == 3
    assert scores.known[[0, -1]].all()
    assert scores.skipped == 6


@pytest.mark.parametrize("documents", [_TEXTS[:6], ["new", *_TEXTS[:6]], ["a", "b", "c", "d", "e", "f", "g", "h"]])
async def test_requests_of_few_known_documents_are_read_at_once(documents: list[str]) -> None:
    async with _opened(inner := RecordingStage()) as stage:
        scores = await stage.score("q", documents, ScoreOptions())
    assert _read(inner) == [documents]
    assert scores.scored is None
    assert scores.skipped == 0


async def test_a_plan_of_anchors_alone_reads_no_other() -> None:
    async with _opened(inner := RecordingStage(), replace(_PLAN, anchors=4, depth=4)) as stage:
        scores = await stage.score("q", _TEXTS, ScoreOptions())
    assert _read(inner) == [_TEXTS[:4]]
    assert scores.skipped == 8


async def test_a_document_that_is_there_twice_is_as_good_as_once() -> None:
    twice = [text for text in _TEXTS for _ in range(2)]
    async with _opened(RecordingStage()) as stage:
        scores = await stage.score("q", twice, ScoreOptions())
    assert scores.known.sum() == 6
    assert all(
        value == _TRUTH[text] for text, value, known in zip(twice, scores.values, scores.known, strict=True) if known
    )


@pytest.mark.parametrize("failure", [DeadlineExceeded("late"), Overloaded("full")])
async def test_a_late_request_fails_unless_it_takes_a_part(failure: Exception) -> None:
    async with _opened(_SecondTime(failure)) as stage:
        with pytest.raises(type(failure)):
            await stage.score("q", _TEXTS, ScoreOptions())
    async with _opened(inner := _SecondTime(failure)) as stage:
        scores = await stage.score("q", _TEXTS, ScoreOptions(terms=Terms(partial=True)))
    assert len(inner.asked) == 2
    assert scores.known.tolist() == [True] * 3 + [False] * 9
    assert scores.skipped == 6


async def test_what_was_late_with_its_anchors_reads_no_more() -> None:
    async with _opened(inner := _Partly()) as stage:
        scores = await stage.score("q", _TEXTS, ScoreOptions(terms=Terms(partial=True)))
    assert _read(inner) == [_TEXTS[:3]]
    assert scores.known.tolist() == [True] * 2 + [False] * 10


async def test_a_failed_request_fails_by_its_own_error() -> None:
    async with _opened(inner := RecordingStage()) as stage:
        inner.failure = Overloaded("full")
        with pytest.raises(Overloaded):
            await stage.score("q", _TEXTS, ScoreOptions(terms=Terms(partial=True)))


async def test_a_cancelled_request_stops_and_the_next_one_is_answered() -> None:
    async with _opened(inner := _Waiting()) as stage:
        inner.hanging = True
        asking = asyncio.create_task(stage.score("q", _TEXTS, ScoreOptions()))
        await inner.began.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        inner.hanging = False
        assert (await stage.score("q", _TEXTS, ScoreOptions())).known.sum() == 6
