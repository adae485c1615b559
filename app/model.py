"""A served model: its names, whether it can answer, and the stage that answers."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic, time

import numpy as np

from app.domain import ScoreOptions
from app.errors import ConfigError, ModelNotReady, RerankError
from app.observer import Observer
from app.pipeline.stage import Stage
from app.ranking import Activation

logger = logging.getLogger(__name__)

_CANARY_TIMEOUT_S = 10.0
_CANARY_IS_FRESH_S = 1.0
_PAIRS_PER_CHECK = 2


class Status(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class GoldenPair:
    """A pair and the raw score that the float32 reference gives it."""

    query: str
    document: str
    logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Pairs that a healthy model scores within `tolerance` of their logits. Without a reference (`tolerance` None)
    only that the scores are finite is checked.
    """

    pairs: Sequence[GoldenPair]
    tolerance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What answers once a model is loaded. `direct` leaves the cache out, so that the canary reaches the engine."""

    stage: Stage
    direct: Stage
    activation: Activation
    canary: Canary
    details: Mapping[str, str | int]


class ServedModel:
    """One entry of the registry, from "loading" to "ready" or "failed"."""

    def __init__(self, *, name: str, aliases: Sequence[str], observer: Observer) -> None:
        self.name = name
        self.aliases = aliases
        self.status = Status.LOADING
        self.reason = "loading"
        self._observer = observer
        self.created = int(time())
        self._loaded: LoadedModel | None = None
        self._checking = asyncio.Lock()
        self._checked_at = -_CANARY_IS_FRESH_S
        observer.model_readiness_changed(model=name, ready=False)

    @property
    def loaded(self) -> LoadedModel:
        """What answers.

        Raises:
            ModelNotReady: the model is loading, or could not be loaded; the message says which and why.
        """
        if self._loaded is None:
            waiting = self.status is Status.LOADING
            raise ModelNotReady(
                f"model {self.name!r} is not ready: {self.reason}", retry_after_s=2.0 if waiting else 60.0
            )
        return self._loaded

    @property
    def details(self) -> Mapping[str, str | int]:
        """What answers, for people; empty while nothing does."""
        return self._loaded.details if self._loaded else {}

    async def start(self, loaded: LoadedModel) -> None:
        """Let the model answer if it passes its canary.

        Raises:
            ConfigError: it does not.
        """
        problem = await _problem(loaded, pairs=loaded.canary.pairs)
        if problem:
            raise ConfigError(problem)
        self._loaded = loaded
        self._turn(Status.READY, "")

    def fail(self, reason: str) -> None:
        """Take the model out of service."""
        self._loaded = None
        self._turn(Status.FAILED, reason)

    async def check(self) -> bool:
        """Run the canary, at most once a second however often this is asked; the answer is the model's readiness."""
        async with self._checking:
            if self._loaded is not None and monotonic() - self._checked_at >= _CANARY_IS_FRESH_S:
                problem = await _problem(self._loaded, pairs=self._loaded.canary.pairs[:_PAIRS_PER_CHECK])
                self._turn(Status.FAILED if problem else Status.READY, problem)
                self._checked_at = monotonic()
        return self.status is Status.READY

    def _turn(self, status: Status, reason: str) -> None:
        if status is not self.status:
            log = logger.error if status is Status.FAILED else logger.info
            log("model is %s", status, extra={"model": self.name, "reason": reason})
        self.status = status
        self.reason = reason
        self._observer.model_readiness_changed(model=self.name, ready=status is Status.READY)


async def _problem(loaded: LoadedModel, *, pairs: Sequence[GoldenPair]) -> str:
    """What the canary found wrong; empty when all is well."""
    try:
        async with asyncio.timeout(_CANARY_TIMEOUT_S):
            values = await asyncio.gather(*(_value(loaded.direct, pair) for pair in pairs))
    except TimeoutError:
        return f"the canary inference took longer than {_CANARY_TIMEOUT_S:.0f} s"
    except RerankError as error:
        return f"the canary inference failed: {error.message}"
    if not np.isfinite(values).all():
        return "the canary inference gave a score that is no finite number"
    tolerance = loaded.canary.tolerance
    if tolerance is None:
        return ""
    for value, pair in zip(values, pairs, strict=True):
        if abs(value - pair.logit) > tolerance:
            return (
                f"the golden pair with query {pair.query!r} scored {value:.4f}, the reference is {pair.logit:.4f} "
                f"(tolerance {tolerance}): wrong weights, tokenizer or quantisation"
            )
    return ""


async def _value(stage: Stage, pair: GoldenPair) -> float:
    scores = await stage.score(pair.query, [pair.document], ScoreOptions(urgent=True))
    return float(scores.values[0])
