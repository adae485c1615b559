"""Readiness is a canary inference: a model is ready when it scores golden pairs as its reference does, now."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import numpy as np
import pytest

from rerankd.domain import ScoreOptions, Scores
from rerankd.errors import ConfigError, ModelNotReady, Overloaded, ScoringFailed
from rerankd.pipeline.stage import Stage
from rerankd.scorers.ranking import identity
from rerankd.serving.model import Canary, GoldenPair, LoadedModel, ServedModel, Status
from tests.fakes import RecordingObserver, RecordingStage, put_into_service, score_of

_PAIRS = [GoldenPair("query", document, score_of("query", document)) for document in ("one", "two", "three")]


def _loaded(
    stage: Stage,
    *,
    pairs: Sequence[GoldenPair] = _PAIRS,
    tolerance: float | None = 0.1,
    every_s: float = 0.001,
    timeout_s: float = 0.05,
    alive_at: Callable[[], float] = lambda: 0.0,
) -> LoadedModel:
    canary = Canary(pairs=pairs, tolerance=tolerance, first_timeout_s=0.5, timeout_s=timeout_s, every_s=every_s)
    return LoadedModel(
        stage=RecordingStage(),
        direct=stage,
        activation=identity,
        canary=canary,
        details={"max_length": 512},
        alive_at=alive_at,
    )


@asynccontextmanager
async def _watched(model: ServedModel, loaded: LoadedModel) -> AsyncIterator[None]:
    """A model whose canaries run in the background, as in the service."""
    await put_into_service(model, loaded)
    watching = asyncio.create_task(model.watch(loaded))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0.001)


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
def model(observer: RecordingObserver) -> ServedModel:
    return ServedModel(name="tiny", aliases=("t",), observer=observer)


async def test_a_model_that_loads_is_not_ready_and_says_when_to_come_back(model: ServedModel) -> None:
    assert model.status is Status.LOADING
    assert model.details == {}
    with pytest.raises(ModelNotReady, match="'tiny' is still loading") as refused:
        _ = model.loaded
    assert refused.value.retry_after_s < 10


async def test_a_model_that_passes_its_canary_answers(model: ServedModel, observer: RecordingObserver) -> None:
    stage = RecordingStage()
    await put_into_service(model, _loaded(stage))
    assert model.loaded.direct is stage
    assert model.details == {"max_length": 512}
    assert [documents for _, documents, _ in stage.asked] == [["one"], ["two"], ["three"]]
    assert all(options.terms.urgent for _, _, options in stage.asked)
    assert [fact["ready"] for fact in observer.named("model_readiness_changed")] == [False, True]


async def test_the_reason_why_a_model_failed_is_for_the_operator_alone(model: ServedModel) -> None:
    model.fail("no model folder /srv/secret/path")
    assert model.reason == "no model folder /srv/secret/path"
    with pytest.raises(ModelNotReady, match="'tiny' could not be loaded; GET /ready") as refused:
        _ = model.loaded
    assert "secret" not in refused.value.message
    assert refused.value.retry_after_s >= 10


@pytest.mark.parametrize(
    ("off_by", "tolerance", "passes"),
    [(0.0, 0.1, True), (0.09, 0.1, True), (0.11, 0.1, False), (-0.11, 0.1, False), (5.0, None, True)],
)
async def test_scores_must_be_close_to_the_reference(
    model: ServedModel, off_by: float, tolerance: float | None, passes: bool
) -> None:
    stage = RecordingStage()
    stage.values = {"three": score_of("query", "three") + off_by}
    if passes:
        await put_into_service(model, _loaded(stage, tolerance=tolerance))
        assert model.status is Status.READY
    else:
        with pytest.raises(ConfigError, match="wrong weights, tokenizer or quantization"):
            await put_into_service(model, _loaded(stage, tolerance=tolerance))
        assert model.status is Status.LOADING


class _RaisingStage:
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        raise self._error


@pytest.mark.parametrize("tolerance", [None, 0.1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
async def test_a_score_that_is_no_number_fails_the_canary(
    model: ServedModel, bad: float, tolerance: float | None
) -> None:
    stage = RecordingStage()
    stage.values = {"two": bad}
    with pytest.raises(ConfigError, match="not a finite number"):
        await put_into_service(model, _loaded(stage, tolerance=tolerance))


@pytest.mark.parametrize("error", [ScoringFailed("bad"), Overloaded("busy"), IndexError("a bug"), MemoryError()])
async def test_whatever_a_canary_raises_is_a_reason_and_ends_with_it(model: ServedModel, error: Exception) -> None:
    stage = RecordingStage()
    async with _watched(model, _loaded(stage)):
        stage.failure = error
        await _until(lambda: model.status is Status.FAILED)
        assert model.reason.startswith("the canary inference failed")
        assert model.loaded.direct is stage, "requests may still try"
        stage.failure = None
        await _until(lambda: model.status is Status.READY)
        assert model.reason == ""


async def test_a_model_whose_first_canary_never_answers_does_not_start(model: ServedModel) -> None:
    stage = RecordingStage()
    stage.hanging = True
    with pytest.raises(ConfigError, match=r"longer than 0\.5 s"):
        await put_into_service(model, _loaded(stage))


class _HeldStage(RecordingStage):
    """Answers while `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.open = 0
        self.most_open = 0

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.gate.wait()
            return await super().score(query, documents, options)
        finally:
            self.open -= 1


async def test_an_engine_that_is_stuck_turns_the_model_red_until_it_answers(
    model: ServedModel, observer: RecordingObserver
) -> None:
    stage = _HeldStage()
    async with _watched(model, _loaded(stage)):
        started = perf_counter()
        stage.gate.clear()
        await _until(lambda: model.status is Status.FAILED)
        assert perf_counter() - started >= 0.05
        assert model.reason == "the engine is stuck: no answer for 0.05 s"
        assert model.loaded.direct is stage, "requests may still try"
        stage.gate.set()
        await _until(lambda: model.status is Status.READY)
    assert [fact["ready"] for fact in observer.named("model_readiness_changed")] == [False, True, False, True]


async def test_a_canary_that_waits_says_nothing_while_forward_passes_end(model: ServedModel) -> None:
    """A loaded server is ready, however long its canary waits behind others' work."""
    stage = _HeldStage()
    passes_end = True
    async with _watched(model, _loaded(stage, alive_at=lambda: perf_counter() if passes_end else 0.0)):
        stage.gate.clear()
        await _until(lambda: stage.open == 2)
        await asyncio.sleep(0.15)
        assert model.status is Status.READY
        passes_end = False
        await _until(lambda: model.status is Status.FAILED)
        passes_end = True
        await _until(lambda: model.status is Status.READY)
        assert stage.most_open == 2, "one canary of two pairs at a time"


async def test_passes_that_end_do_not_make_up_for_wrong_scores(model: ServedModel) -> None:
    stage = _HeldStage()
    async with _watched(model, _loaded(stage, alive_at=perf_counter)):
        stage.values = {"one": score_of("query", "one") + 1}
        await _until(lambda: model.status is Status.FAILED)
        stage.gate.clear()
        await _until(lambda: stage.open == 2)
        await asyncio.sleep(0.06)
        assert "wrong weights" in model.reason


async def test_an_expensive_canary_runs_less_often(model: ServedModel) -> None:
    class Slow(RecordingStage):
        async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
            await asyncio.sleep(0.05)
            return await super().score(query, documents, options)

    stage = Slow()
    async with _watched(model, _loaded(stage)):
        await _until(lambda: len(stage.asked) == 5)
        await asyncio.sleep(0.2)
        assert len(stage.asked) == 5, "the pause is ten times as long as a canary takes"


async def test_a_canary_that_was_under_way_does_not_bring_a_failed_model_back(model: ServedModel) -> None:
    stage = _HeldStage()
    async with _watched(model, _loaded(stage)):
        stage.gate.clear()
        await _until(lambda: stage.open == 2)
        model.fail("the batcher is lost")
        stage.gate.set()
        await _until(lambda: stage.open == 0)
        await asyncio.sleep(0.01)
        assert (model.status, model.reason) == (Status.FAILED, "the batcher is lost")


async def test_a_model_without_a_canary_is_not_watched(model: ServedModel) -> None:
    """One behind an endpoint: asking costs money."""
    loaded = _loaded(RecordingStage(), pairs=())
    await put_into_service(model, loaded)
    await model.watch(loaded)
    assert model.status is Status.READY
