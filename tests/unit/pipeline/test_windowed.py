"""Windows through the batcher: every schedule, what is charged to whom, failures, and the list cache around it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from threading import Barrier
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest

from rerankd.batching.admission import Estimate
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import (
    FloatArray,
    FusionMode,
    FusionPlan,
    FusionWishes,
    QueryMode,
    QueryWishes,
    ScoreOptions,
    Scores,
    Terms,
    WindowPlan,
    WindowWishes,
)
from rerankd.errors import ConfigError, DeadlineExceeded, InvalidRequest, Overloaded, ScoringFailed
from rerankd.pipeline.blanks import BlankStage, drops_nothing
from rerankd.pipeline.cached import CachedStage
from rerankd.pipeline.cached_list import CachedListStage
from rerankd.pipeline.cascade import CascadeStage, Fits, Member
from rerankd.pipeline.fusion import FusionStage
from rerankd.pipeline.pointwise import PointwiseStage
from rerankd.pipeline.several_queries import SeveralQueriesStage
from rerankd.pipeline.stage import Stage
from rerankd.pipeline.windowed import WindowedStage, values_of_order
from rerankd.pipeline.windows import SCHEDULES
from rerankd.scorers.base import EncodedWindow, Kinds, Made
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_tokens import ReadTokens
from tests.fakes import (
    ArithmeticEngine,
    RecordingObserver,
    RecordingStage,
    ScriptedCache,
    WordScorer,
    idle_batcher,
    running_batcher,
)

_WINDOW = 6


class NumberScorer:
    """Documents are numbers and the model knows it: a prompt is the list of them, an output each one's own value."""

    names_best = False
    fingerprint = "numbers"
    pad_id = 0
    task = ReadTokens(tuple(range(_WINDOW)))
    max_length = 512

    def __init__(self, *, schedule: str = "tournament", depth: int = 40) -> None:
        self.plan = WindowPlan(window=_WINDOW, stride=3, schedule=schedule, depth=depth)
        self.windows: list[list[str]] = []

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[Encoding]:
        if query == "too long":
            raise InvalidRequest("the query is too long")
        self.windows.append(list(documents))
        ids = np.array([int(document) for document in documents] + [0], dtype=np.int64)
        return EncodedWindow(Encoding(ids, 0), np.array([int(document) % 2 for document in documents], dtype=np.int64))

    def drops(self, text: str) -> bool:
        return not text

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.lists(self)

    def interpret_window(self, outputs: FloatArray, /, *, candidates: int) -> FloatArray:
        return outputs[:candidates]


class MeetingScorer(NumberScorer):
    """Its first windows are encoded only once all of them are being encoded."""

    def __init__(self, *, threads: int) -> None:
        super().__init__()
        self._meeting = Barrier(threads, timeout=30)
        self._met = False

    def encode_window(self, query: str, documents: Sequence[str], **options: Any) -> EncodedWindow[Encoding]:
        if not self._met:
            self._meeting.wait()
            self._met = True
        return super().encode_window(query, documents, **options)


class NumberEngine(ArithmeticEngine):
    """Gives NaN for the number 13."""

    def __init__(self) -> None:
        super().__init__(tokens=512, pairs=64)
        self.sizes: list[int] = []

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        self.sizes.append(len(encodings))
        outputs = np.zeros((len(encodings), _WINDOW), dtype=np.float32)
        for row, encoding in enumerate(encodings):
            values = encoding.ids[:-1].astype(np.float32)
            outputs[row, : len(values)] = np.where(values == 13, np.nan, values)
        return outputs


class SlowNumberEngine(NumberEngine):
    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        sleep(0.05)
        return super().run(encodings)


@asynccontextmanager
async def staged(scorer: NumberScorer, engine: NumberEngine) -> AsyncIterator[WindowedStage[Encoding, FloatArray]]:
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(engine, RecordingObserver()) as batcher:
            yield WindowedStage(scorer, batcher, tokenizing)


def texts(count: int, *, seed: int = 0) -> list[str]:
    """Numbers from 100 on, shuffled."""
    return [str(100 + number) for number in np.random.default_rng(seed).permutation(count)]


def placed_by(scores: Scores) -> list[str | None]:
    assert scores.placed_by is not None
    return list(scores.placed_by)


def cached(scores: Scores) -> int:
    assert scores.cached is not None
    return int(scores.cached.sum())


def best_first(documents: Sequence[str], values: FloatArray) -> list[str]:
    return [documents[index] for index in np.argsort(-values, kind="stable")]


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 13, 40])
async def test_the_best_come_first_whatever_the_schedule(schedule: str, count: int) -> None:
    # Neighbours changed places: in a bad initial order more are above the pivot of top-down than it has room for.
    documents = [str(200 - (number ^ 1)) for number in range(count)]
    async with staged(NumberScorer(schedule=schedule), NumberEngine()) as stage:
        scores = await stage.score("query", documents, ScoreOptions())
    settled = documents[:_WINDOW] if schedule == "full" else documents
    expected = sorted(settled, key=int, reverse=True)[: _WINDOW if schedule == "full" else 3]
    assert best_first(documents, scores.values)[: len(expected)] == expected
    assert sorted(scores.values.tolist()) == pytest.approx([(place + 1) / count for place in range(count)])


async def test_windows_of_a_round_share_a_batch_and_tokens_are_charged_to_their_candidates() -> None:
    engine, scorer = NumberEngine(), NumberScorer()
    documents = texts(30)
    async with staged(scorer, engine) as stage:
        scores = await stage.score("query", documents, ScoreOptions())
    assert engine.sizes[0] == 5
    assert scores.tokens.sum() == sum(len(window) + 1 for window in scorer.windows)
    assert scores.tokens.min() >= 1
    assert scores.dropped.tolist() == [int(document) % 2 for document in documents]
    assert scores.timings.inference_s > 0


async def test_windows_of_a_round_are_tokenized_at_the_same_time() -> None:
    scorer = MeetingScorer(threads=3)
    with SharedWorker.open(name="tokenize", threads=3) as tokenizing:
        async with running_batcher(NumberEngine(), RecordingObserver()) as batcher:
            await WindowedStage(scorer, batcher, tokenizing).score("query", texts(18), ScoreOptions())
    assert len(scorer.windows) > 3


async def test_windows_of_different_requests_share_a_batch() -> None:
    engine = SlowNumberEngine()
    async with staged(NumberScorer(), engine) as stage:
        await asyncio.gather(*(stage.score("query", texts(30, seed=seed), ScoreOptions()) for seed in range(8)))
    assert max(engine.sizes) > 5
    assert len(engine.sizes) < 8 * 3


async def test_fewer_results_take_fewer_windows() -> None:
    asked = []
    for top_n in (1, None):
        scorer = NumberScorer()
        async with staged(scorer, NumberEngine()) as stage:
            for seed in range(9):
                await stage.score("query", texts(30, seed=seed), ScoreOptions(top_n=top_n))
        asked.append(len(scorer.windows))
    assert asked[0] < asked[1]


async def test_a_score_that_is_no_number_fails_the_request() -> None:
    async with staged(NumberScorer(), NumberEngine()) as stage:
        with pytest.raises(ScoringFailed, match="score of a candidate is not a finite number"):
            await stage.score("query", ["1", "13"], ScoreOptions())
        with pytest.raises(ScoringFailed, match="score of a candidate is not a finite number"):
            await stage.score("query", ["13"], ScoreOptions())
        with pytest.raises(InvalidRequest, match="too long"):
            await stage.score("too long", ["1", "2"], ScoreOptions())


async def test_those_beyond_the_depth_stay_below_in_the_initial_order() -> None:
    documents = [str(number) for number in range(20, 29)]
    async with staged(NumberScorer(depth=4), NumberEngine()) as stage:
        plain = await stage.score("query", documents, ScoreOptions())
        wishes = WindowWishes(initial_order=[8, 7, 6, 5, 4, 3, 2, 1, 0], depth=3)
        turned = await stage.score("query", documents, ScoreOptions(windows=wishes))
    assert best_first(documents, plain.values) == ["23", "22", "21", "20", "24", "25", "26", "27", "28"]
    assert best_first(documents, turned.values) == ["28", "27", "26", "25", "24", "23", "22", "21", "20"]


def test_an_unknown_schedule_is_refused_at_load() -> None:
    with pytest.raises(ConfigError, match="unknown schedule 'bubble'; known: sliding, full, top-down, tournament"):
        WindowedStage(NumberScorer(schedule="bubble"), None, None)  # type: ignore[arg-type]  # neither is reached


async def test_a_deadline_that_comes_between_windows_ends_the_schedule() -> None:
    scorer = NumberScorer(schedule="sliding")
    async with staged(scorer, SlowNumberEngine()) as stage:
        options = ScoreOptions(terms=Terms(deadline=perf_counter() + 0.25, partial=True))
        with pytest.raises(DeadlineExceeded) as caught:
            await stage.score("query", texts(40), options)
        assert caught.value.message.endswith("before there was an order: allow more time, or send fewer documents")
        begun = len(scorer.windows)
        await asyncio.sleep(0.3)
    assert 2 <= begun < 12
    assert len(scorer.windows) == begun


def test_an_order_as_values() -> None:
    assert values_of_order([2, 0, 1, 3]).tolist() == [0.75, 0.5, 1.0, 0.25]


async def test_a_repeated_list_comes_from_the_cache_and_any_change_does_not() -> None:
    scorer, cache, observer = NumberScorer(), ScriptedCache(), RecordingObserver()
    documents = texts(9)
    async with staged(scorer, NumberEngine()) as inner:
        stage = CachedListStage(inner, cache, fingerprint="x", observer=observer)
        first = await stage.score("query", documents, ScoreOptions())
        asked = len(scorer.windows)
        again = await stage.score("query", documents, ScoreOptions())
        assert len(scorer.windows) == asked
        assert (cached(first), cached(again)) == (0, 9)
        np.testing.assert_array_equal(first.values, again.values)
        np.testing.assert_array_equal(first.tokens, again.tokens)
        for query, texts_, options in (
            ("other", documents, ScoreOptions()),
            ("query", documents[::-1], ScoreOptions()),
            ("query", documents[:8], ScoreOptions()),
            ("query", documents, ScoreOptions(top_n=1)),
            ("query", documents, ScoreOptions(scope="a key")),
            ("query", documents, ScoreOptions(max_tokens_per_doc=1)),
            ("query", documents, ScoreOptions(windows=WindowWishes(depth=3))),
        ):
            assert cached(await stage.score(query, texts_, options)) == 0
        other = CachedListStage(inner, cache, fingerprint="y", observer=observer)
        assert cached(await other.score("query", documents, ScoreOptions())) == 0
    assert observer.total("cache_looked_up", "hits") == 9


async def test_an_order_of_which_the_model_said_nothing_is_not_kept() -> None:
    cache, observer = ScriptedCache(), RecordingObserver()
    async with staged(NumberScorer(), NumberEngine()) as inner:
        stage = CachedListStage(inner, cache, fingerprint="x", observer=observer)
        for _ in range(2):
            scores = await stage.score("query", ["7", "7"], ScoreOptions())
            assert (scores.unordered, cached(scores)) == (1, 0)
            assert best_first(["a", "b"], scores.values) == ["a", "b"]
        assert not cache.entries
        assert (
            await CascadeStage([Member("x", stage, None)]).score("query", ["7", "7"], ScoreOptions())
        ).unordered == 1
        assert (await stage.score("query", ["7"], ScoreOptions())).unordered == 0


async def test_a_broken_list_cache_is_one_that_knows_nothing() -> None:
    cache, observer = ScriptedCache(), RecordingObserver()
    async with staged(NumberScorer(), NumberEngine()) as inner:
        stage = CachedListStage(inner, cache, fingerprint="x", observer=observer)
        await stage.score("query", ["1", "2"], ScoreOptions())
        (entry,) = cache.entries.values()
        no_number = entry[:4] + np.full(6, np.nan, dtype=np.float32).tobytes()
        for damage in (b"", b"short", no_number, b"pr01" + entry[4:], entry[4:]):
            cache.entries = dict.fromkeys(cache.entries, damage)
            assert cached(await stage.score("query", ["1", "2"], ScoreOptions())) == 0
        cache.failing = True
        assert best_first(["1", "2"], (await stage.score("query", ["1", "2"], ScoreOptions())).values) == ["2", "1"]
    assert [fact["operation"] for fact in observer.named("cache_failed")] == ["get", "put"]


async def test_each_member_of_a_cascade_reorders_the_best_of_the_one_before() -> None:
    cheap, dear = RecordingStage(), RecordingStage()
    cheap.values = {"a": 1, "b": 3, "c": 2, "d": 9}
    dear.values = {"b": 0.1, "c": 0.2}
    stage = CascadeStage([Member("cheap", cheap, 3), Member("dear", dear, 2)])
    wishes = WindowWishes(initial_order=[3, 2, 1, 0], depth=2)
    scores = await stage.score("query", ["a", "b", "c", "d"], ScoreOptions(windows=wishes))
    assert best_first(["a", "b", "c", "d"], scores.values) == ["c", "b", "a", "d"]
    assert placed_by(scores) == ["cheap", "dear", "dear", None]
    assert scores.tokens.tolist() == [1, 2, 2, 0]
    assert [documents for _, documents, _ in cheap.asked + dear.asked] == [["a", "b", "c"], ["b", "c"]]
    assert [options.windows for _, _, options in dear.asked] == [WindowWishes(depth=2)]


async def test_a_cascade_without_depths_reorders_all() -> None:
    cheap = RecordingStage()
    cheap.values = {"a": 1, "b": 3}
    scores = await CascadeStage([Member("cheap", cheap, None)]).score("query", ["a", "b"], ScoreOptions())
    assert placed_by(scores) == ["cheap", "cheap"]
    assert scores.values.tolist() == [0.5, 1.0]


async def test_a_cascade_counts_what_was_read_of_each_document_for_that_document() -> None:
    cheap = RecordingStage()
    cheap.values = {"a": 1.0, "b b": 2.0, "c c c": 3.0}
    scores = await CascadeStage([Member("cheap", cheap, None)]).score("query", ["a", "b b", "c c c"], ScoreOptions())
    assert scores.tokens.tolist() == [1, 2, 3]


async def test_a_cascades_documents_are_cached_where_none_of_its_models_read_them() -> None:
    members = [
        Member(
            name, CachedStage(RecordingStage(), ScriptedCache(), fingerprint=name, observer=RecordingObserver()), depth
        )
        for name, depth in (("cheap", 3), ("dear", 1))
    ]
    await CascadeStage(members[:1]).score("query", ["a", "b", "c", "d"], ScoreOptions())
    scores = await CascadeStage(members).score("query", ["a", "b", "c", "d"], ScoreOptions())
    assert cached(scores) == 2, "the dear model read the best, and nobody the last"
    assert cached(await CascadeStage(members).score("query", ["a", "b", "c", "d"], ScoreOptions())) == 3


@pytest.mark.parametrize(
    ("depths", "top_n", "expected"),
    [((9, 4), 2, [4, 2]), ((9, 4), 7, [7, 7]), ((9, None), 2, [None, 2]), ((9, 4), None, [None, None]), ((9,), 2, [2])],
)
async def test_a_member_settles_as_many_as_the_next_one_reads(
    depths: Sequence[int | None], top_n: int | None, expected: list[int | None]
) -> None:
    stages = [RecordingStage() for _ in depths]
    cascade = CascadeStage([Member("one", stage, depth) for stage, depth in zip(stages, depths, strict=True)])
    await cascade.score("query", texts(12), ScoreOptions(top_n=top_n))
    assert [stage.asked[0][2].top_n for stage in stages] == expected


def reads_at_most(most: int) -> Fits:
    async def fits(_query: str, documents: Sequence[str], _options: ScoreOptions) -> bool:
        return len(documents) <= most

    return fits


@pytest.mark.parametrize(
    ("first", "second", "cuts", "order", "unread"),
    [
        (9, 9, {"cheap": 4, "dear": 3}, ["c", "b", "d", "a"], []),
        (9, 2, {"cheap": 4, "dear": 2}, ["b", "d", "c", "a"], []),
        (9, 0, {"cheap": 4, "dear": 0}, ["d", "b", "c", "a"], []),
        (2, 0, {"cheap": 2, "dear": 0}, ["b", "a", "c", "d"], ["c", "d"]),
        (0, 0, {"cheap": 1, "dear": 0}, ["a", "b", "c", "d"], ["b", "c", "d"]),
    ],
)
async def test_the_deadline_cuts_a_cascade_where_its_members_fit(
    first: int, second: int, cuts: dict[str, int], order: list[str], unread: list[str]
) -> None:
    cheap, dear = RecordingStage(), RecordingStage()
    cheap.values = {"a": 1, "b": 3, "c": 2, "d": 9}
    dear.values = {"b": 0.2, "c": 0.3, "d": 0.1}
    members = [Member("cheap", cheap, None, reads_at_most(first)), Member("dear", dear, 3, reads_at_most(second))]
    documents = ["a", "b", "c", "d"]
    options = ScoreOptions(budgeted=True, terms=Terms(partial=True))
    scores = await CascadeStage(members).score("query", documents, options)
    assert best_first(documents, scores.values) == order
    assert scores.cuts == cuts
    scored = [True] * 4 if scores.scored is None else scores.scored.tolist()
    assert [text for text, known in zip(documents, scored, strict=True) if not known] == unread
    assert len(dear.asked) == (cuts["dear"] > 0)
    plain = await CascadeStage(members).score("query", documents, ScoreOptions())
    assert plain.cuts is None
    assert best_first(documents, plain.values) == ["c", "b", "d", "a"]


async def test_a_later_member_that_is_late_leaves_the_order_before_it() -> None:
    cheap, dear = RecordingStage(), LateStage()
    cheap.values = {"a": 1, "b": 3}
    cascade = CascadeStage([Member("cheap", cheap, None), Member("dear", dear, None)])
    for budgeted in (True, False):
        options = ScoreOptions(budgeted=budgeted, terms=Terms(partial=True))
        scores = await cascade.score("query", ["a", "b"], options)
        assert (best_first(["a", "b"], scores.values), scores.cuts) == (["b", "a"], {"cheap": 2, "dear": 0})
    with pytest.raises(DeadlineExceeded):
        await cascade.score("query", ["a", "b"], ScoreOptions())
    with pytest.raises(DeadlineExceeded):
        await CascadeStage([Member("dear", dear, None)]).score("query", ["a", "b"], options)


class LateStage:
    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        raise DeadlineExceeded("too late")


async def test_a_cascade_gives_no_order_of_half_the_scores() -> None:
    engine = ArithmeticEngine(pairs=1, seconds_per_pass=0.05)
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with running_batcher(engine, RecordingObserver()) as batcher:
            cascade = CascadeStage([Member("cheap", PointwiseStage(WordScorer(), batcher, tokenizing), None)])
            options = ScoreOptions(terms=Terms(deadline=perf_counter() + 0.2, partial=True))
            with pytest.raises(DeadlineExceeded, match="before there was an order: allow more time, or send fewer doc"):
                await cascade.score("query", texts(40), options)
    assert len(engine.batches) > 1


async def test_no_prompt_is_written_for_a_request_that_is_not_admitted() -> None:
    scorer = NumberScorer()
    batcher = idle_batcher(max_waiting_tokens=100)
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with batcher.admit(Estimate(characters=4000, items=100, longest=42), ScoreOptions().terms):
            with pytest.raises(Overloaded):
                await WindowedStage(scorer, batcher, tokenizing).score("query", texts(18), ScoreOptions())
    assert scorer.windows == []


async def told_of(stage: Stage, documents: Sequence[str], options: ScoreOptions) -> tuple[dict[int, int], list[int]]:
    """The documents that were told to have their final places, and the order that came of it."""
    told: dict[int, int] = {}

    def settled(place: int, indices: Sequence[int]) -> None:
        told.update(enumerate(indices, place))

    scores = await stage.score("query", documents, replace(options, settled=settled))
    return told, np.argsort(-scores.merits, kind="stable").tolist()


async def test_final_places_are_told_by_the_positions_in_the_request() -> None:
    documents = ["", *texts(20), "", *texts(5, seed=1)]
    wishes = WindowWishes(initial_order=[*range(20, 27), *range(20)], depth=20)
    with SharedWorker.open(name="tokenize", threads=1) as tokenizing:
        async with staged(NumberScorer(schedule="sliding"), NumberEngine()) as stage:
            blanks = BlankStage(stage, tokenizing, drops=drops_nothing)
            told, order = await told_of(blanks, documents, ScoreOptions(windows=wishes))
    assert sorted(told) == list(range(5, 20)), "the last window settles the first six at once"
    assert [order[place] for place in told] == list(told.values())


async def test_only_the_last_member_of_a_cascade_tells_places() -> None:
    documents = texts(20)
    async with staged(NumberScorer(schedule="sliding"), NumberEngine()) as stage:
        first = Member("first", stage, 16)
        last = Member("last", stage, 9)
        told, order = await told_of(CascadeStage([first, last]), documents, ScoreOptions())
        assert sorted(told) == [6, 7, 8]
        assert [order[place] for place in sorted(told)] == [told[place] for place in sorted(told)]
        late = ScoreOptions(terms=Terms(partial=True))
        assert (await told_of(CascadeStage([first, last]), documents, late))[0] == {}, "it may yet be too late"
        assert (await told_of(CascadeStage([first, Member("cheap", RecordingStage(), 9)]), documents, ScoreOptions()))[
            0
        ] == {}


async def test_no_place_is_told_where_the_order_is_changed_afterwards() -> None:
    documents = texts(20)
    async with staged(NumberScorer(schedule="sliding"), NumberEngine()) as stage:
        fused = FusionStage(SeveralQueriesStage(stage), plan=FusionPlan())
        assert (await told_of(fused, documents, ScoreOptions()))[0]
        for wishes in (
            ScoreOptions(queries=QueryWishes(others=["other"], mode=QueryMode.RRF)),
            ScoreOptions(fusion=FusionWishes(mode=FusionMode.RRF)),
        ):
            assert (await told_of(fused, documents, wishes))[0] == {}
