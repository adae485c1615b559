"""Every document against every other: what follows from the comparisons, what they cost, and what is remembered."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from rerankd.cache.memory import MemoryCache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, ScoreOptions, Scores, WindowPlan, WindowWishes
from rerankd.errors import InvalidRequest, Overloaded, ScoringFailed
from rerankd.pipeline.all_pairs import ALL_PAIRS_CODEC, AllPairsStage
from rerankd.pipeline.known_scores import KnownScores
from rerankd.scorers.base import Comparison, EncodedPairs, Kinds, Made
from rerankd.scorers.ranking import identity, rank
from rerankd.tasks.encoding import Encoding, stacked
from rerankd.tasks.read_tokens import ReadTokens
from tests.fakes import ArithmeticEngine, RecordingObserver, running_batcher

PLAIN = ScoreOptions()


class NumberScorer:
    """Documents are numbers; the log-odds of two are how much more the first is, and a bit for being the first."""

    fingerprint = "numbers"
    pad_id = 0
    task = ReadTokens((1, 2))
    max_length = 512

    def __init__(self, *, depth: int = 50) -> None:
        self.plan = WindowPlan(window=2, stride=1, schedule="all-pairs", depth=depth)

    def encode_comparisons(
        self,
        query: str,
        documents: Sequence[str],
        comparisons: Sequence[Comparison],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[Encoding]:
        ids = [np.array([int(documents[one]) for one in comparison], dtype=np.int64) for comparison in comparisons]
        dropped = np.array([int(documents[first]) % 3 for first, _ in comparisons], dtype=np.int64)
        return EncodedPairs([Encoding(pair, 0) for pair in ids], dropped)

    def drops(self, text: str) -> bool:
        return not text

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.comparisons(self)

    def interpret_comparisons(self, rows: Iterable[FloatArray], /) -> FloatArray:
        logits = stacked(rows)
        return logits[:, 0] - logits[:, 1]


class NumberEngine(ArithmeticEngine):
    """Gives NaN for the number 13."""

    def __init__(self) -> None:
        super().__init__(tokens=512, pairs=64)
        self.compared: list[tuple[int, int]] = []

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        rows = np.array([encoding.ids for encoding in encodings], dtype=np.float32)
        self.compared += [tuple(encoding.ids.tolist()) for encoding in encodings]
        rows[rows == 13] = np.nan
        rows[:, 0] += 3
        rows /= 10
        return rows


class Setup:
    def __init__(self, stage: AllPairsStage[Encoding, FloatArray], engine: NumberEngine) -> None:
        self.stage = stage
        self.engine = engine

    async def score(self, *documents: int, **options: object) -> Scores:
        return await self.stage.score("query", [str(one) for one in documents], ScoreOptions(**options))  # type: ignore[arg-type]


@asynccontextmanager
async def staged(*, depth: int = 50, cached: bool = False, max_waiting_tokens: int = 100_000) -> AsyncIterator[Setup]:
    engine = NumberEngine()
    known = (
        KnownScores(MemoryCache(max_entries=10_000), ALL_PAIRS_CODEC, observer=RecordingObserver()) if cached else None
    )
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(engine, RecordingObserver(), max_waiting_tokens=max_waiting_tokens) as batcher:
            scorer = NumberScorer(depth=depth)
            yield Setup(AllPairsStage(scorer, batcher, tokenizing, known=known, fingerprint="model"), engine)


def order(scores: Scores) -> list[int]:
    return [one.index for one in rank(scores, activation=identity, top_n=None)]


async def test_probabilities_of_both_orders_are_averaged() -> None:
    async with staged() as setup:
        scores = await setup.score(20, 26, 23)
    odds = {(a, b): 1 / (1 + np.exp(-((a - b) / 10 + 0.3))) for a in (20, 26, 23) for b in (20, 26, 23)}
    for value, a in zip(scores.values.tolist(), (20, 26, 23), strict=True):
        others = {20, 26, 23} - {a}
        assert value == pytest.approx(sum(odds[a, b] + 1 - odds[b, a] for b in others) / 4, abs=1e-6)
    assert sorted(setup.engine.compared) == sorted((a, b) for a in (20, 26, 23) for b in (20, 26, 23) if a != b)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
async def test_a_consistent_model_gives_its_order(count: int) -> None:
    documents = [int(one) + 20 for one in np.random.default_rng(0).permutation(count)]
    async with staged() as setup:
        scores = await setup.score(*documents)
    assert order(scores) == sorted(range(count), key=lambda index: -documents[index])
    assert ((scores.values > 0) & (scores.values < 1)).all()
    assert len(setup.engine.compared) == max(1, count * (count - 1))


async def test_documents_beyond_the_depth_keep_their_order_below() -> None:
    async with staged(depth=3) as setup:
        scores = await setup.score(20, 22, 21, 99, 98)
        assert order(scores) == [1, 2, 0, 3, 4]
        assert scores.tokens.tolist() == [4, 4, 4, 0, 0]
        wishes = WindowWishes(depth=2, initial_order=[4, 3, 2, 1, 0])
        assert order(await setup.score(20, 22, 21, 99, 98, windows=wishes)) == [3, 4, 2, 1, 0]


async def test_what_a_document_lost_and_cost_is_its_own() -> None:
    async with staged() as setup:
        scores = await setup.score(20, 21, 22)
    assert scores.dropped.tolist() == [2, 0, 1]
    assert scores.tokens.sum() == 6 * 2


async def test_a_comparison_is_computed_once() -> None:
    async with staged(cached=True) as setup:
        first = await setup.score(20, 21, 22)
        assert first.cached is not None
        assert not first.cached.any()
        setup.engine.compared.clear()
        again = await setup.score(22, 23, 20)
        assert again.cached is not None
        assert not again.cached.any(), "each is compared with a new one"
        assert sorted(setup.engine.compared) == [(20, 23), (22, 23), (23, 20), (23, 22)]
        setup.engine.compared.clear()
        last = await setup.score(20, 21, 22)
        assert last.cached is not None
        assert last.cached.all()
        assert not setup.engine.compared
    np.testing.assert_array_equal(last.values, first.values)
    np.testing.assert_array_equal(last.tokens, first.tokens)
    np.testing.assert_array_equal(last.dropped, first.dropped)


async def test_equal_documents_are_compared_once_and_share_their_place() -> None:
    async with staged(cached=True) as setup:
        scores = await setup.score(20, 21, 20)
    assert sorted(setup.engine.compared) == [(20, 20), (20, 21), (21, 20)]
    assert scores.values[0] == pytest.approx(scores.values[2])


async def test_a_request_is_admitted_by_its_comparisons() -> None:
    async with staged(max_waiting_tokens=600) as setup:
        requests = [setup.score(*range(start, start + 20)) for start in (20, 50)]
        first, second = await asyncio.gather(*requests, return_exceptions=True)
    assert isinstance(first, Scores)
    assert isinstance(second, Overloaded), "the documents of both fit, the comparisons of one do"
    assert len(setup.engine.compared) == 20 * 19


async def test_an_estimate_counts_every_comparison() -> None:
    async with staged(depth=3) as setup:
        estimate = setup.stage.estimate("query", ["a", "bb", "ccc", "dddd"], PLAIN)
    assert (estimate.items, estimate.characters) == (6, 6 * 5 + 4 * (1 + 2 + 3))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (WindowWishes(schedule="sliding"), "compares all pairs"),
        (WindowWishes(window=3), "window must be from 2 to 2"),
        (WindowWishes(depth=51), "depth must be from 1 to 50"),
        (WindowWishes(initial_order=[0, 0]), "initial_order must hold"),
    ],
)
async def test_wishes_beyond_the_plan_are_refused(wishes: WindowWishes, message: str) -> None:
    async with staged() as setup:
        with pytest.raises(InvalidRequest, match=message):
            await setup.score(20, 21, windows=wishes)


async def test_a_score_that_is_no_number_is_a_failure() -> None:
    async with staged() as setup:
        scores = await setup.score(20, 13, 22)
    with pytest.raises(ScoringFailed, match="not a finite number"):
        rank(scores, activation=identity, top_n=None)
