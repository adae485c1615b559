"""A served model: its names, whether it can answer, and the stage that answers."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from time import monotonic, time

import numpy as np

from app.domain import ScoreOptions
from app.errors import ConfigError, ModelNotReady, RerankError
from app.observer import Observer
from app.pipeline.stage import Stage
from app.ranking import Activation

logger = logging.getLogger(__name__)

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
    """Pairs that a healthy model scores within `tolerance` of their logits, and within `timeout_s`. Without a
    reference (`tolerance` None) only that the scores are finite is checked, without pairs nothing. A verdict is good
    for `fresh_s`.
    """

    pairs: Sequence[GoldenPair]
    tolerance: float | None
    timeout_s: float = 10.0
    fresh_s: float = 1.0


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
        self._settled = asyncio.Event()
        self._checked_at = -inf
        observer.model_readiness_changed(model=name, ready=False)

    @property
    def loaded(self) -> LoadedModel:
        """What answers.

        Raises:
            ModelNotReady: the model is loading, or could not be loaded. Why is for the operator: a reason may name
                a path of the server.
        """
        if self._loaded is not None:
            return self._loaded
        if self.status is Status.LOADING:
            raise ModelNotReady(f"model {self.name!r} is still loading; try again soon", retry_after_s=2.0)
        raise ModelNotReady(
            f"model {self.name!r} could not be loaded; GET /ready and the server's log say why", retry_after_s=60.0
        )

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

    async def settled(self) -> LoadedModel:
        """Wait until the model is loaded or has failed, and give what answers.

        Raises:
            ModelNotReady: it failed. The message says why, for this is asked by the operator's own tools.
        """
        await self._settled.wait()
        if self._loaded is None:
            raise ModelNotReady(f"model {self.name!r} could not be loaded: {self.reason}")
        return self._loaded

    async def check(self) -> bool:
        """Run the canary, at most once a second however often this is asked; the answer is the model's readiness."""
        async with self._checking:
            loaded = self._loaded
            if loaded is not None and monotonic() - self._checked_at >= loaded.canary.fresh_s:
                problem = await _problem(loaded, pairs=loaded.canary.pairs[:_PAIRS_PER_CHECK])
                # Else the model was taken out of service meanwhile, and a canary that got through says nothing.
                if self._loaded is loaded:
                    self._turn(Status.FAILED if problem else Status.READY, problem)
                    self._checked_at = monotonic()
        return self.status is Status.READY

    def _turn(self, status: Status, reason: str) -> None:
        if status is not self.status:
            log = logger.error if status is Status.FAILED else logger.info
            log("model is %s", status, extra={"model": self.name, "reason": reason})
        self.status = status
        self.reason = reason
        self._settled.set()
        self._observer.model_readiness_changed(model=self.name, ready=status is Status.READY)


async def _problem(loaded: LoadedModel, *, pairs: Sequence[GoldenPair]) -> str:
    """What the canary found wrong; empty when all is well."""
    try:
        async with asyncio.timeout(loaded.canary.timeout_s):
            values = await asyncio.gather(*(_value(loaded.direct, pair) for pair in pairs))
        return _difference(loaded.canary, values, pairs)
    except TimeoutError:
        return f"the canary inference took longer than {loaded.canary.timeout_s:g} s"
    except RerankError as error:
        return f"the canary inference failed: {error.message}"
    except Exception as error:
        logger.exception("the canary inference failed")
        return f"the canary inference failed: {error!r:.200}"


def _difference(canary: Canary, values: Sequence[float], pairs: Sequence[GoldenPair]) -> str:
    if not np.isfinite(values).all():
        return "the canary inference gave a score that is no finite number"
    for value, pair in zip(values, pairs, strict=True):
        if canary.tolerance is not None and abs(value - pair.logit) > canary.tolerance:
            return (
                f"the golden pair with query {pair.query!r} scored {value:.4f}, the reference is {pair.logit:.4f} "
                f"(tolerance {canary.tolerance}): wrong weights, tokenizer or quantisation"
            )
    return ""


async def _value(stage: Stage, pair: GoldenPair) -> float:
    scores = await stage.score(pair.query, [pair.document], ScoreOptions(urgent=True))
    return float(scores.values[0])
