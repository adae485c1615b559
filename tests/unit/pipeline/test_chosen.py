"""Documents ranked by comparisons: what follows from answers, what they cost, what is kept, and what ends them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from rerankd.cache.memory import MemoryCache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, ScoreOptions, Scores, Terms, WindowPlan, WindowWishes
from rerankd.errors import ConfigError, DeadlineExceeded, InvalidRequest, Overloaded, ScoringFailed
from rerankd.pipeline.choices import METHODS
from rerankd.pipeline.chosen import ANSWERS, ChosenStage
from rerankd.pipeline.comparators import Comparator, ListComparator, PairComparator
from rerankd.pipeline.known_scores import KnownScores
from rerankd.pipeline.score_codec import ScoreCodec
from rerankd.scorers.base import Comparison, EncodedPairs, EncodedWindow, Kinds, Made
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

    def __init__(self, plan: WindowPlan) -> None:
        self.plan = plan

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


class SetScorer:
    """Documents are numbers, and the model names the largest of a set; of one with 13 in it nothing."""

    fingerprint = "sets"
    pad_id = 0
    task = ReadTokens((1, 2))
    max_length = 512
    names_best = True

    def __init__(self, plan: WindowPlan) -> None:
        self.plan = plan

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[Encoding]:
        ids = np.array([int(document) for document in documents], dtype=np.int64)
        return EncodedWindow(Encoding(ids, 0), ids % 3)

    def drops(self, text: str) -> bool:
        return not text

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.lists(self)

    def interpret_window(self, row: FloatArray, /, *, candidates: int) -> FloatArray:
        scores = np.zeros(candidates, dtype=np.float32)
        if np.isfinite(row).all():
            scores[int(row[0])] = 1
        return scores


class SetEngine(NumberEngine):
    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        self.compute([encoding.ids.tolist() for encoding in encodings])
        self.compared += [tuple(encoding.ids.tolist()) for encoding in encodings]
        best = [float("nan") if 13 in encoding.ids else encoding.ids.argmax() for encoding in encodings]
        return np.array(best, dtype=np.float32)[:, None]


class Setup:
    def __init__(
        self, stage: ChosenStage[Encoding, FloatArray], engine: NumberEngine, observer: RecordingObserver
    ) -> None:
        self.stage = stage
        self.engine = engine
        self.observer = observer

    async def score(self, *documents: int, **options: object) -> Scores:
        return await self.stage.score("query", [str(one) for one in documents], ScoreOptions(**options))  # type: ignore[arg-type]


@asynccontextmanager
async def staged(*, cached: bool = False, max_waiting_tokens: int = 100_000, **plan: Any) -> AsyncIterator[Setup]:
    wanted = WindowPlan(**{"window": 2, "stride": 1, "schedule": "all-pairs", "depth": 50, **plan})
    pairs = wanted.window == 2
    engine = NumberEngine() if pairs else SetEngine()
    comparator: Comparator[Encoding, FloatArray] = (
        PairComparator(NumberScorer(wanted)) if pairs else ListComparator(SetScorer(wanted))
    )
    observer = RecordingObserver()
    codec = ScoreCodec(ANSWERS, parts=comparator.told)
    known = KnownScores(MemoryCache(max_entries=10_000), codec, observer=observer) if cached else None
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(engine, observer, max_waiting_tokens=max_waiting_tokens) as batcher:
            stage = ChosenStage(comparator, batcher, tokenizing, known=known, fingerprint="model")
            yield Setup(stage, engine, observer)


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
        (WindowWishes(schedule="sliding"), "unknown schedule 'sliding'; known: setwise, all-pairs"),
        (WindowWishes(schedule="setwise"), "needs a window of at least 3 documents"),
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
        with pytest.raises(ScoringFailed, match="not a finite number"):
            await setup.score(20, 13, 22)


SETWISE: dict[str, Any] = {"schedule": "setwise", "window": 4, "depth": 100}


@pytest.mark.parametrize("schedule", sorted(METHODS))
@pytest.mark.parametrize("count", [1, 2, 9, 30])
async def test_every_schedule_ranks_over_either_comparator(schedule: str, count: int) -> None:
    # Further apart than being the first of two is worth.
    documents = [4 * int(one) + 20 for one in np.random.default_rng(count).permutation(count)]
    best = sorted(range(count), key=lambda index: -documents[index])
    for window in [2, 5] if METHODS[schedule].pairs else [5]:
        async with staged(schedule=schedule, window=window, settle=4) as setup:
            scores = await setup.score(*documents)
            known = 1 if schedule in ("single-elimination", "swiss") else 4
            assert order(scores)[:known] == best[:known]
            assert scores.comparisons == len(setup.engine.compared)
            assert sorted(order(scores)) == list(range(count))
            assert 0 < scores.values.min() <= scores.values.max() <= 1
            wanted = setup.stage.estimate("query", list(map(str, documents)), PLAIN).items
            assert scores.comparisons <= 1.5 * wanted + 2


async def test_fewer_results_take_fewer_comparisons() -> None:
    async with staged(**SETWISE) as setup:
        asked = []
        for top_n in (1, 5, 10, 50, None):
            setup.engine.compared.clear()
            scores = await setup.score(*range(100, 160), top_n=top_n)
            assert order(scores)[: min(top_n or 10, 10)] == list(range(59, 59 - min(top_n or 10, 10), -1))
            asked.append(len(setup.engine.compared))
    assert asked[0] < asked[1] < asked[2] == asked[3] == asked[4], "no more are settled than the operator says"


async def test_a_decided_comparison_is_won_whole_and_a_contradiction_is_halved() -> None:
    async with staged(schedule="prp") as setup:
        scores = await setup.score(20, 26, 21)
    # The first of two has an advantage of 3: between 20 and 21 each wins when it comes first.
    assert scores.values == pytest.approx([0.25, 1, 0.25], abs=1e-6)
    assert order(scores) == [1, 0, 2]


async def test_of_what_a_model_does_not_say_nothing_follows() -> None:
    async with staged(**SETWISE, cached=True) as setup:
        documents = [13, *range(20, 39)]
        scores = await setup.score(*documents)
        assert scores.unordered > 0
        assert order(scores)[0] == 0, "the first stage's best, of which nothing else is known"
        assert order(scores)[1:4] == [19, 18, 17]
        silent = [one for one in setup.engine.compared if 13 in one]
        assert scores.unordered == len(silent)
        setup.engine.compared.clear()
        assert order(await setup.score(*documents)) == order(scores)
        assert setup.engine.compared == silent, "the model is asked again, all else is known"


async def test_a_repeated_request_asks_nothing() -> None:
    async with staged(**SETWISE, cached=True) as setup:
        first = await setup.score(*range(100, 140))
        assert first.cached is not None
        assert not first.cached.any()
        setup.engine.compared.clear()
        again = await setup.score(*range(100, 140))
        assert not setup.engine.compared
        assert again.cached is not None
        assert again.cached.all()
        assert again.comparisons == first.comparisons
        for name in ("values", "tokens", "dropped"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
        assert 2 * first.comparisons <= first.tokens.sum() <= 4 * first.comparisons
        assert (first.dropped <= np.arange(100, 140) % 3).all()


async def _after_a_round(setup: Setup, request: Awaitable[Scores]) -> asyncio.Task[Scores]:
    """Begin a request, and hold the engine when it has begun its second pass."""
    setup.engine.gate.clear()
    task = asyncio.ensure_future(request)
    while len(setup.engine.batches) < 1:  # noqa: ASYNC110 - a thread begins a pass
        await asyncio.sleep(0.001)
    setup.engine.gate.set()
    while len(setup.engine.compared) < 1:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.001)
    setup.engine.gate.clear()
    return task


async def test_a_late_request_fails_in_mid_schedule_or_says_what_is_known() -> None:
    documents = list(range(100, 140))
    async with staged(**SETWISE, cached=True) as setup:
        for partial in (False, True):
            terms = Terms(deadline=perf_counter() + 0.3, partial=partial)
            task = await _after_a_round(setup, setup.score(*documents, terms=terms))
            await asyncio.wait({task})
            setup.engine.gate.set()
            if not partial:
                with pytest.raises(DeadlineExceeded, match="deadline"):
                    task.result()
                continue
            scores = task.result()
            assert scores.settled == 0
            assert scores.scored is None
            assert sorted(order(scores)) == list(range(40))
            beaten = {min(one) - 100 for one in setup.engine.compared[:1]}
            assert order(scores) != list(range(40)), "what is known counts"
            assert order(scores)[0] not in beaten
        late = await setup.score(*documents, terms=Terms(deadline=perf_counter() - 1, partial=True, urgent=True))
        assert late.settled == 0
        whole = await setup.score(*documents)
        assert (whole.settled, order(whole)[:10]) == (None, list(range(39, 29, -1)))


async def test_a_cancelled_request_stops_its_schedule() -> None:
    async with staged(**SETWISE) as setup:
        task = await _after_a_round(setup, setup.score(*range(100, 200)))
        task.cancel()
        await asyncio.wait({task})
        setup.engine.gate.set()
        assert task.cancelled()
        asked = len(setup.engine.compared)
        await setup.score(7, 8)
        assert len(setup.engine.compared) <= asked + 34 + 1, "what a pass had begun is finished"
        assert setup.engine.compared[-1] == (7, 8)


async def test_another_schedule_may_not_take_more_than_the_operators() -> None:
    async with staged(schedule="prp-sorting", settle=3) as setup:
        cheaper = await setup.score(*range(20, 60), windows=WindowWishes(schedule="single-elimination"))
        assert order(cheaper)[0] == 39
        assert cheaper.comparisons == 2 * 39
        with pytest.raises(InvalidRequest, match="schedule 'all-pairs' may take 2450 comparisons of 50 documents, and"):
            await setup.score(*range(20, 80), windows=WindowWishes(schedule="all-pairs"))
        assert len(await setup.score(*range(20, 80), windows=WindowWishes(schedule="all-pairs", depth=10))) == 60


async def test_comparisons_in_one_order_are_half_as_many() -> None:
    async with staged(schedule="prp-sorting", both_orders=False, settle=30) as setup:
        scores = await setup.score(*range(20, 50))
    assert scores.comparisons == len(set(map(frozenset, setup.engine.compared)))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"schedule": "sliding"}, "unknown schedule 'sliding'"),
        ({"schedule": "setwise"}, "schedule 'setwise' needs a window of at least 3 documents, and this one has 2"),
    ],
)
async def test_a_schedule_that_does_not_suit_is_refused_at_load(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        async with staged(**plan):
            pass


async def test_the_first_places_are_told_while_the_others_are_compared() -> None:
    told: list[tuple[int, list[int]]] = []
    known: list[int] = []
    async with staged(window=4, schedule="setwise", settle=5) as setup:

        def settled(place: int, indices: Sequence[int]) -> None:
            told.append((place, list(indices)))
            known.append(len(setup.engine.compared))

        documents = [*range(100, 130), *range(150, 130, -1)]
        scores = await setup.stage.score("query", list(map(str, documents)), ScoreOptions(settled=settled))
    assert [place for place, _ in told] == [0, 1, 2, 3, 4]
    assert [index for _, indices in told for index in indices] == order(scores)[:5]
    assert known[0] < known[-1], "the first was told before the last comparison"
