"""Only unknown pairs go on, once each; a broken cache is a cache that knows nothing."""

import asyncio

import numpy as np
import pytest

from rerankd.cache.keys import pair_keys
from rerankd.cache.memory import MemoryCache
from rerankd.domain import ScoreOptions, Scores, Terms
from rerankd.errors import Overloaded
from rerankd.pipeline.cached import CachedStage
from rerankd.pipeline.score_codec import ScoreCodec
from tests.fakes import RecordingObserver, RecordingStage, ScriptedCache, score_of

_PLAIN = ScoreOptions()


def _entry(mark: bytes, value: float) -> bytes:
    one = np.ones(1, dtype=np.int64)
    (entry,) = ScoreCodec(mark).write(Scores(values=np.array([value], dtype=np.float32), tokens=one, dropped=one))
    return entry


class _Setup:
    def __init__(self) -> None:
        self.inner = RecordingStage()
        self.cache = ScriptedCache()
        self.observer = RecordingObserver()
        self.stage = CachedStage(self.inner, self.cache, fingerprint="model-1", observer=self.observer)

    async def score(self, *documents: str, query: str = "query", options: ScoreOptions = _PLAIN) -> Scores:
        return await self.stage.score(query, documents, options)

    @property
    def asked(self) -> list[list[str]]:
        return [documents for _, documents, _ in self.inner.asked]


@pytest.fixture
def setup() -> _Setup:
    return _Setup()


def _as_right(scores: Scores, *documents: str) -> None:
    assert scores.values.tolist() == [score_of("query", document) for document in documents]
    assert scores.tokens.tolist() == [len(document.split()) for document in documents]
    assert scores.dropped.tolist() == [len(document.split()) // 10 for document in documents]


def _cached(scores: Scores) -> list[bool] | None:
    return None if scores.cached is None else scores.cached.tolist()


async def test_the_second_time_nothing_goes_on(setup: _Setup) -> None:
    documents = ("a", "b b", "c " * 25)
    first, second = await setup.score(*documents), await setup.score(*documents)
    for scores in (first, second):
        _as_right(scores, *documents)
    assert (_cached(first), _cached(second)) == ([False] * 3, [True] * 3)
    assert len(setup.asked) == 1
    assert setup.observer.named("cache_looked_up") == [{"hits": 0, "misses": 3}, {"hits": 3, "misses": 0}]


async def test_only_unknown_pairs_go_on(setup: _Setup) -> None:
    await setup.score("a", "b")
    scores = await setup.score("c", "a", "d", "b")
    _as_right(scores, "c", "a", "d", "b")
    assert setup.asked == [["a", "b"], ["c", "d"]]
    assert _cached(scores) == [False, True, False, True]


async def test_equal_documents_are_scored_once(setup: _Setup) -> None:
    scores = await setup.score("a", "b", "a", "a", "b")
    _as_right(scores, "a", "b", "a", "a", "b")
    assert setup.asked == [["a", "b"]]
    assert _cached(scores) == [False, False, True, True, True]
    assert len(setup.cache.looked_up[0]) == 2


async def test_in_a_large_request_each_document_gets_its_own_score_and_equal_ones_are_scored_once(
    setup: _Setup,
) -> None:
    """Large requests are handled in chunks; equal documents are far apart here, and some are known."""
    await setup.score(*(f"text {number}" for number in range(0, 900, 7)))
    documents = [f"text {number % 900}" + " long" * (number % 30) for number in range(2000)]
    scores = await setup.score(*documents)
    _as_right(scores, *documents)
    known = {f"text {number}" for number in range(0, 900, 7)}
    fresh = list(dict.fromkeys(document for document in documents if document not in known))
    assert setup.asked[1:] == [fresh]
    seen = set(known)
    expected = []
    for document in documents:
        expected.append(document in seen)
        seen.add(document)
    assert _cached(scores) == expected
    again = await setup.score(*documents)
    _as_right(again, *documents)
    assert len(setup.asked) == 2


async def test_other_queries_lengths_instructions_and_models_are_other_pairs(setup: _Setup) -> None:
    other_model = CachedStage(setup.inner, setup.cache, fingerprint="model-2", observer=setup.observer)
    await setup.score("a")
    await setup.score("a", query="another")
    await setup.score("a", options=ScoreOptions(max_tokens_per_doc=7))
    await setup.score("a", options=ScoreOptions(max_tokens_per_doc=8))
    await setup.score("a", options=ScoreOptions(instruction="find code"))
    await other_model.score("query", ["a"], _PLAIN)
    assert len(setup.asked) == 6
    assert len(setup.cache.entries) == 6


async def test_options_go_on(setup: _Setup) -> None:
    options = ScoreOptions(max_tokens_per_doc=7, terms=Terms(urgent=True))
    await setup.score("a", options=options)
    assert setup.inner.asked[0][2] is options


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"short",
        b"x" * 16,
        b"a text of another program",
        pytest.param(bytes(12), id="an entry of a version without marks"),
        pytest.param(_entry(b"ls01", 1.0), id="an entry of another stage"),
        pytest.param(_entry(b"pr01", np.nan), id="no number"),
    ],
)
async def test_an_entry_that_cannot_be_one_is_ignored_and_replaced(setup: _Setup, stored: bytes) -> None:
    (key,) = pair_keys("model-1|[null, null]", "query", ["a"])
    setup.cache.entries[key] = stored
    _as_right(await setup.score("a"), "a")
    _as_right(await setup.score("a"), "a")
    assert len(setup.asked) == 1


async def test_a_score_that_is_no_number_is_not_kept(setup: _Setup) -> None:
    setup.inner.values = {"a": float("nan"), "b": 1.0}
    scores = await setup.score("a", "b")
    assert np.isnan(scores.values[0])
    setup.inner.values = {}
    _as_right(await setup.score("a"), "a")
    assert setup.asked == [["a", "b"], ["a"]]


async def test_a_cache_that_fails_is_a_cache_that_knows_nothing(setup: _Setup) -> None:
    await setup.score("a")
    setup.cache.failing = True
    _as_right(await setup.score("a"), "a")
    assert setup.asked == [["a"], ["a"]]
    assert setup.observer.named("cache_failed") == [{"operation": "get"}, {"operation": "put"}]
    assert setup.observer.named("cache_looked_up")[-1] == {"hits": 0, "misses": 1}
    setup.cache.failing = False
    assert _cached(await setup.score("a")) == [True]


async def test_a_failure_of_the_model_is_passed_on_and_nothing_is_kept(setup: _Setup) -> None:
    setup.inner.failure = Overloaded("too much")
    with pytest.raises(Overloaded):
        await setup.score("a")
    assert setup.cache.entries == {}


async def test_a_request_that_goes_away_stops_waiting_for_the_cache(setup: _Setup) -> None:
    setup.cache.hanging = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(setup.score("a"), timeout=0.01)
    assert setup.asked == []


async def test_times_are_those_of_the_cache_and_of_the_inner_stage(setup: _Setup) -> None:
    scores = await setup.score("a")
    assert scores.timings.cache_s > 0
    assert scores.timings.inference_s == 0


async def test_more_pairs_than_the_cache_holds_are_scored_all_the_same() -> None:
    inner = RecordingStage()
    stage = CachedStage(inner, MemoryCache(max_entries=2), fingerprint="f", observer=RecordingObserver())
    documents = [str(number) for number in range(9)]
    for _ in range(2):
        _as_right(await stage.score("query", documents, _PLAIN), *documents)
