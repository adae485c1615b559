"""A served model: its names, whether it can answer, and the stage that answers. While it serves, a
newer version may replace it, and it may be unloaded and loaded again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from time import perf_counter, time

import numpy as np

from rerankd.domain import Embedder, ScoreOptions, Terms
from rerankd.errors import ConfigError, ModelNotReady, RerankError
from rerankd.pipeline.stage import Stage
from rerankd.scorers.calibration import ConfidenceEstimator
from rerankd.scorers.ranking import Activation
from rerankd.serving.usage import Usage
from rerankd.telemetry.observer import Observer
from rerankd.telemetry.redaction import redacted

logger = logging.getLogger(__name__)

_PAIRS_PER_CHECK = 2
# A canary that takes long runs less often: at most this share of an idle engine's time is spent on it.
_CANARY_SHARE = 0.1
# The pause between two canaries never exceeds this.
_LONGEST_PAUSE_S = 60.0
_CHARACTERS_PER_TOKEN = 4
_URGENT = Terms(urgent=True)

Details = Mapping[str, str | int | bool | list[str]]


class Status(StrEnum):
    """UNLOADED: it was idle; the next request loads it again."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADED = "unloaded"

    @property
    def answers(self) -> bool:
        """Whether requests are answered, even if the model has to be loaded first."""
        return self in (Status.READY, Status.UNLOADED)


@dataclass(frozen=True, slots=True)
class GoldenPair:
    """A pair and the raw score that the float32 reference gives it."""

    query: str
    document: str
    logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Pairs that a healthy model scores within `tolerance` of their logits. Without a reference (`tolerance` None) only
    that the scores are finite is checked, without pairs nothing. The first canary, which may have to compile, may take
    `first_timeout_s`. The others run every `every_s`; one that is unanswered for `timeout_s` while no forward pass ends
    means that the engine is stuck.
    """

    pairs: Sequence[GoldenPair]
    tolerance: float | None
    first_timeout_s: float = 300.0
    timeout_s: float = 10.0
    every_s: float = 5.0


def _never() -> float:
    return -inf


def _nothing() -> None:
    pass


async def _always(_query: str, _documents: Sequence[str], _options: ScoreOptions) -> bool:
    return True


def _about(query: str, documents: Sequence[str], _options: ScoreOptions) -> int:
    """What usual English has, for a model of which nothing better is known."""
    return (len(query) * len(documents) + sum(map(len, documents))) // _CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What answers once a model is loaded. `direct` leaves the cache out, so that the canary reaches the engine.
    `alive_at` says when, by `perf_counter`, the engine was last seen to work: see `Batcher.alive_at`.
    `remark` is for operators who wonder about its speed, `warning` says what may be wrong with its scores,
    `trouble` why its remote model does not answer now.
    `ignores` names the wishes of requests that mean nothing to it. `estimate` says about how many tokens a request has,
    and `fits` whether it would be answered before its deadline.
    `prunes`: it can prune documents. `usage` counts the requests that use it. `confidence` None: its scores only say
    the order. `embedder` None: it gives documents no vectors.
    """

    stage: Stage
    direct: Stage
    activation: Activation
    canary: Canary
    details: Details
    remark: str = ""
    warning: str = ""
    ignores: Collection[str] = ()
    prunes: bool = False
    confidence: ConfidenceEstimator | None = None
    embedder: Embedder | None = None
    alive_at: Callable[[], float] = _never
    trouble: Callable[[], str] = str
    estimate: Callable[[str, Sequence[str], ScoreOptions], int] = _about
    fits: Callable[[str, Sequence[str], ScoreOptions], Awaitable[bool]] = _always
    usage: Usage = field(default_factory=Usage)


class ServedModel:
    """One entry of the registry. `fallback` answers where it cannot. `turned` is called when its status changes,
    `wanted` when a request comes for a model that is unloaded.
    """

    def __init__(
        self,
        *,
        name: str,
        aliases: Sequence[str],
        observer: Observer,
        turned: Callable[[], None] = _nothing,
        wanted: Callable[[], None] = _nothing,
    ) -> None:
        self.name = name
        self.aliases = aliases
        self.status = Status.LOADING
        self.reason = "loading"
        self._observer = observer
        self._turned = turned
        self._wanted = wanted
        self.created = int(time())
        self.details: Details = {}
        self.remark = ""
        self.ignores: Collection[str] = ()
        self.fallback: ServedModel | None = None
        self.passage_selector: ServedModel | None = None
        self.diversity_model: ServedModel | None = None
        self._warning = ""
        self._loaded: LoadedModel | None = None
        self._settled = asyncio.Event()
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
        if self.status in (Status.LOADING, Status.UNLOADED):
            raise ModelNotReady(f"model {self.name!r} is still loading; try again soon", retry_after_s=2.0)
        raise ModelNotReady(
            f"model {self.name!r} could not be loaded; GET /ready and the server's log say why", retry_after_s=60.0
        )

    async def loaded_within(self, seconds: float) -> LoadedModel:
        """What answers; while the model is loading, wait for it, and load it if it is unloaded. A caller enters
        its `usage` before the event loop has its next turn.

        Raises:
            ModelNotReady: see `loaded`.
        """
        if self.status is Status.UNLOADED:
            self._wanted()
        if not self._settled.is_set() and seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if seconds == inf else seconds):
                    await self._settled.wait()
        return self.loaded

    @property
    def warning(self) -> str:
        """What may be wrong with its scores, or why its remote does not answer now; mostly empty."""
        trouble = self._loaded.trouble() if self._loaded else ""
        if trouble and self.fallback is not None:
            trouble = f"{trouble}; {self.fallback.name} answers"
        return trouble or self._warning

    def failed_to_answer(self, reason: str) -> None:
        """Count a request that its fallback is asked for."""
        self._observer.fallback_asked(model=self.name, reason=reason)

    @property
    def usage(self) -> Usage | None:
        """The requests that use it; None while it is not loaded."""
        return self._loaded.usage if self._loaded else None

    def serve(self, loaded: LoadedModel) -> None:
        """Answer from now on with this, which has passed its canary. Requests that run go on with what they have."""
        self._loaded = loaded
        self.details, self.remark, self._warning = loaded.details, loaded.remark, loaded.warning
        self.ignores = loaded.ignores
        self.created = int(time())
        if "certified" in loaded.details:
            self._observer.model_certified(model=self.name, certified=bool(loaded.details["certified"]))
        self._turn(Status.READY, "")

    def unload(self) -> None:
        """Stop answering until a request comes."""
        self._loaded = None
        self._turn(Status.UNLOADED, "the next request loads it")

    def remove(self) -> None:
        """Stop answering for good: the registry does not name it any more."""
        self._loaded = None
        self.status, self.reason = Status.FAILED, "removed"
        self._settled.set()
        self._observer.model_removed(model=self.name)

    def fail(self, reason: str) -> None:
        """Take the model out of service."""
        self._loaded = None
        self.details, self.remark, self._warning = {}, "", ""
        # `/ready` shows it to everybody, and a library may have written it.
        self._turn(Status.FAILED, redacted(reason))

    def doubt(self, reason: str) -> None:
        """Say that the model is not ready. Requests may still try."""
        self._turn(Status.FAILED, redacted(reason))

    async def settled(self) -> LoadedModel:
        """Wait until the model is loaded or has failed, and give what answers.

        Raises:
            ModelNotReady: it failed. The message says why, for this is asked by the operator's own tools.
        """
        await self._settled.wait()
        if self._loaded is None:
            raise ModelNotReady(f"model {self.name!r} could not be loaded: {self.reason}")
        return self._loaded

    async def watch(self, loaded: LoadedModel) -> None:
        """Keep `status` true for as long as this answers: run canaries, one at a time. A loaded engine may let a
        canary wait for as long as other passes end; only where nothing ends any more is it taken for stuck. The first
        one has just passed when this is called.
        """
        took_s = 0.0
        while self._loaded is loaded and loaded.canary.pairs:
            await asyncio.sleep(max(loaded.canary.every_s, min(took_s / _CANARY_SHARE, _LONGEST_PAUSE_S)))
            started = perf_counter()
            async with asyncio.TaskGroup() as asking:
                canary = asking.create_task(_problem(loaded, pairs=loaded.canary.pairs[:_PAIRS_PER_CHECK]))
                await self._wait_for(canary, loaded)
            self._judge(loaded, canary.result())
            took_s = perf_counter() - started

    async def _wait_for(self, canary: asyncio.Task[str], loaded: LoadedModel) -> None:
        """Wait for a canary's answer. Meanwhile an engine that is stuck makes the model not ready, and one that works
        again gives it the verdict back that it had.
        """
        before = self.reason
        asked = perf_counter()
        timeout_s = loaded.canary.timeout_s
        while not canary.done():
            left_s = timeout_s - (perf_counter() - max(asked, loaded.alive_at()))
            self._judge(loaded, before if left_s > 0 else f"the engine is stuck: no answer for {timeout_s:g} s")
            await asyncio.wait({canary}, timeout=left_s if left_s > 0 else timeout_s / 10)

    def _judge(self, loaded: LoadedModel, problem: str) -> None:
        """Take in a verdict, unless the model was taken out of service meanwhile."""
        if self._loaded is loaded:
            self._turn(Status.FAILED if problem else Status.READY, problem)

    def _turn(self, status: Status, reason: str) -> None:
        if (status, reason) == (self.status, self.reason):
            return
        if status is not self.status:
            log = logger.error if status is Status.FAILED else logger.info
            told = {"reason": reason or self.remark} if reason or self.remark else {}
            log("model is %s", status, extra={"model": self.name, **told})
        self.status = status
        self.reason = reason
        if status is Status.UNLOADED:
            self._settled.clear()
        else:
            self._settled.set()
        self._observer.model_readiness_changed(model=self.name, ready=status.answers)
        self._turned()


async def try_out(loaded: LoadedModel) -> None:
    """Run a model's first canary, over all of its pairs.

    Raises:
        ConfigError: it failed.
    """
    try:
        async with asyncio.timeout(loaded.canary.first_timeout_s):
            problem = await _problem(loaded, pairs=loaded.canary.pairs)
    except TimeoutError:
        problem = f"the canary inference took longer than {loaded.canary.first_timeout_s:g} s"
    if problem:
        raise ConfigError(problem)


async def _problem(loaded: LoadedModel, *, pairs: Sequence[GoldenPair]) -> str:
    """What the canary found wrong; empty when all is well."""
    try:
        values = await asyncio.gather(*(_value(loaded.direct, pair) for pair in pairs))
        return _difference(loaded.canary, values, pairs)
    except RerankError as error:
        return f"the canary inference failed: {error.message}"
    except Exception as error:
        logger.exception("the canary inference failed")
        return f"the canary inference failed: {error!r:.200}"


def _difference(canary: Canary, values: Sequence[float], pairs: Sequence[GoldenPair]) -> str:
    if not np.isfinite(values).all():
        return "the canary inference gave a score that is not a finite number"
    for value, pair in zip(values, pairs, strict=True):
        if canary.tolerance is not None and abs(value - pair.logit) > canary.tolerance:
            return (
                f"the golden pair with query {pair.query!r} scored {value:.4f}, the reference is {pair.logit:.4f} "
                f"(tolerance {canary.tolerance}): wrong weights, tokenizer or quantization"
            )
    return ""


async def _value(stage: Stage, pair: GoldenPair) -> float:
    scores = await stage.score(pair.query, [pair.document], ScoreOptions(terms=_URGENT))
    return float(scores.values[0])
