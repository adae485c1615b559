"""Readiness is a canary inference: a model is ready when it scores golden pairs as its reference does, now."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from app.domain import ScoreOptions, Scores
from app.errors import ConfigError, ModelNotReady, Overloaded, ScoringFailed
from app.model import Canary, GoldenPair, LoadedModel, ServedModel, Status
from app.pipeline.stage import Stage
from app.ranking import identity
from tests.fakes import RecordingObserver, RecordingStage, score_of

_PAIRS = [GoldenPair("query", document, score_of("query", document)) for document in ("one", "two", "three")]


def _loaded(
    stage: Stage, *, pairs: Sequence[GoldenPair] = _PAIRS, tolerance: float | None = 0.1, fresh_s: float = 0.0
) -> LoadedModel:
    canary = Canary(pairs=pairs, tolerance=tolerance, timeout_s=0.05, fresh_s=fresh_s)
    return LoadedModel(
        stage=RecordingStage(), direct=stage, activation=identity, canary=canary, details={"max_length": 512}
    )


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
def model(observer: RecordingObserver) -> ServedModel:
    return ServedModel(name="tiny", aliases=("t",), observer=observer)


async def test_a_model_that_loads_is_not_ready_and_says_when_to_come_back(model: ServedModel) -> None:
    assert model.status is Status.LOADING
    assert not await model.check()
    assert model.details == {}
    with pytest.raises(ModelNotReady, match="'tiny' is still loading") as refused:
        _ = model.loaded
    assert refused.value.retry_after_s < 10


async def test_a_model_that_passes_its_canary_answers(model: ServedModel, observer: RecordingObserver) -> None:
    stage = RecordingStage()
    await model.start(_loaded(stage))
    assert model.loaded.direct is stage
    assert model.details == {"max_length": 512}
    assert await model.check()
    assert [documents for _, documents, _ in stage.asked] == [["one"], ["two"], ["three"], ["one"], ["two"]]
    assert all(options.urgent for _, _, options in stage.asked)
    assert [fact["ready"] for fact in observer.named("model_readiness_changed")] == [False, True, True]


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
        await model.start(_loaded(stage, tolerance=tolerance))
        assert model.status is Status.READY
    else:
        with pytest.raises(ConfigError, match="wrong weights, tokenizer or quantisation"):
            await model.start(_loaded(stage, tolerance=tolerance))
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
    with pytest.raises(ConfigError, match="no finite number"):
        await model.start(_loaded(stage, tolerance=tolerance))


@pytest.mark.parametrize("error", [ScoringFailed("bad"), Overloaded("busy"), IndexError("a bug"), MemoryError()])
async def test_whatever_the_canary_raises_is_a_reason_not_a_crash(model: ServedModel, error: Exception) -> None:
    await model.start(_loaded(RecordingStage()))
    model._loaded = _loaded(_RaisingStage(error))
    assert not await model.check()
    assert model.reason.startswith("the canary inference failed")


async def test_a_canary_that_hangs_fails_and_one_that_answers_again_recovers(
    model: ServedModel, observer: RecordingObserver
) -> None:
    stage = RecordingStage()
    await model.start(_loaded(stage))
    stage.hanging = True
    assert not await model.check()
    assert "took longer than 0.05 s" in model.reason
    assert model.loaded.direct is stage, "requests may still try"
    stage.hanging = False
    assert await model.check()
    assert model.reason == ""
    assert [fact["ready"] for fact in observer.named("model_readiness_changed")] == [False, True, False, True]


async def test_however_often_readiness_is_asked_the_canary_runs_once_in_a_while(model: ServedModel) -> None:
    stage = RecordingStage()
    await model.start(_loaded(stage, fresh_s=60))
    asked = len(stage.asked)
    assert all(await asyncio.gather(*(model.check() for _ in range(20))))
    assert len(stage.asked) == asked + 2


async def test_a_canary_that_was_under_way_does_not_bring_a_failed_model_back(model: ServedModel) -> None:
    class Slow(RecordingStage):
        async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
            await asyncio.sleep(0.01)
            return await super().score(query, documents, options)

    await model.start(_loaded(Slow()))
    checking = asyncio.ensure_future(model.check())
    await asyncio.sleep(0)
    model.fail("the batcher is lost")
    assert not await checking
    assert (model.status, model.reason) == (Status.FAILED, "the batcher is lost")
