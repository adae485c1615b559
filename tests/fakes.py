"""Small classes that fit the Protocols, for tests that need no model: deterministic, and made to fail on command."""

import asyncio
import re
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from rerankd.batching.batcher import Batcher
from rerankd.batching.passes import ThreadPasses
from rerankd.batching.planner import BatchPlanner
from rerankd.batching.work import Results
from rerankd.cache.base import Cache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.worker import Worker
from rerankd.domain import (
    ConfidencePlan,
    DiversityPlan,
    Embedder,
    FloatArray,
    FusionPlan,
    ImageLimits,
    PassagePlan,
    ScoreOptions,
    Scores,
    Timings,
    Truncation,
)
from rerankd.engines.base import BatchLimits
from rerankd.errors import CacheUnavailable, InvalidRequest, TooLong
from rerankd.pipeline.blanks import BlankStage
from rerankd.pipeline.budget import BudgetStage
from rerankd.pipeline.cached import CachedStage
from rerankd.pipeline.diversity import DiversityStage
from rerankd.pipeline.fusion import FusionStage
from rerankd.pipeline.long_queries import LongQueryStage
from rerankd.pipeline.passages import PassageStage
from rerankd.pipeline.pointwise import PointwiseStage
from rerankd.pipeline.several_queries import SeveralQueriesStage
from rerankd.pipeline.spans import SpanStage
from rerankd.scorers.base import Edges, EncodedPairs, Kinds, Made
from rerankd.scorers.calibration import ConfidenceEstimator
from rerankd.scorers.ranking import Activation, identity
from rerankd.serving.catalog import Catalog
from rerankd.serving.model import Canary, GoldenPair, LoadedModel, ServedModel, try_out
from rerankd.serving.service import Limits, RerankService
from rerankd.tasks.classify import Classify
from rerankd.tasks.encoding import Encoding, stacked
from rerankd.telemetry.observer import Observer

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

POISON: Final = 666
NOT_A_NUMBER: Final = 667
IMAGES: Final = ImageLimits(images=10, bytes=100_000)
_SPECIAL: Final[Mapping[str, int]] = {"poison": POISON, "nan": NOT_A_NUMBER}
_SEPARATOR: Final = 1
_VOCABULARY: Final = 1_000_003
_LOGITS: Final = 999_983
_CANARY: Final = Canary(pairs=(GoldenPair("query", "document", 0.0),), tolerance=None)


@dataclass(frozen=True)
class Fact:
    name: str
    fields: Mapping[str, Any]


class RecordingObserver:
    """Remembers every fact, in order."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def named(self, name: str) -> list[Mapping[str, Any]]:
        return [fact.fields for fact in self.facts if fact.name == name]

    def total(self, name: str, of: str) -> int:
        return sum(int(fields[of]) for fields in self.named(name))

    def _state(self, name: str, **fields: Any) -> None:
        self.facts.append(Fact(name, fields))

    def request_started(self) -> None:
        self._state("request_started")

    def job_line_tried(self, *, model: str, status: int, key: str, tokens: int) -> None:
        self._state("job_line_tried", model=model, status=status, key=key, tokens=tokens)

    def job_changed(self, *, running: int, ended: str = "") -> None:
        self._state("job_changed", running=running, ended=ended)

    def request_finished(
        self, *, model: str, dialect: str, status: int, duration_s: float, key: str, tokens: int
    ) -> None:
        self._state(
            "request_finished",
            model=model,
            dialect=dialect,
            status=status,
            duration_s=duration_s,
            key=key,
            tokens=tokens,
        )

    def request_scored(
        self,
        *,
        model: str,
        timings: Timings,
        dropped_tokens: int,
        unordered_windows: int,
        ungraded_answers: int,
        comparisons: int,
    ) -> None:
        self._state(
            "request_scored",
            model=model,
            timings=timings,
            dropped_tokens=dropped_tokens,
            unordered_windows=unordered_windows,
            ungraded_answers=ungraded_answers,
            comparisons=comparisons,
        )

    def request_fused(self, *, model: str, mode: str) -> None:
        self._state("request_fused", model=model, mode=mode)

    def request_abstained(self, *, model: str) -> None:
        self._state("request_abstained", model=model)

    def engine_started(self, *, model: str, workers: int, max_waiting_tokens: int) -> None:
        self._state("engine_started", model=model, workers=workers, max_waiting_tokens=max_waiting_tokens)

    def batch_scored(self, *, model: str, pairs: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        self._state(
            "batch_scored", model=model, pairs=pairs, tokens=tokens, padded_tokens=padded_tokens, seconds=seconds
        )

    def batch_failed(self, *, model: str, pairs: int) -> None:
        self._state("batch_failed", model=model, pairs=pairs)

    def thread_given_up(self, *, model: str) -> None:
        self._state("thread_given_up", model=model)

    def queue_changed(self, *, model: str, waiting_tokens: int, waiting_s: float) -> None:
        self._state("queue_changed", model=model, waiting_tokens=waiting_tokens, waiting_s=waiting_s)

    def work_cancelled(self, *, model: str, tokens: int) -> None:
        self._state("work_cancelled", model=model, tokens=tokens)

    def request_shed(self, *, model: str, reason: str) -> None:
        self._state("request_shed", model=model, reason=reason)

    def deadline_missed(self, *, model: str) -> None:
        self._state("deadline_missed", model=model)

    def pairs_coalesced(self, *, model: str, pairs: int) -> None:
        self._state("pairs_coalesced", model=model, pairs=pairs)

    def cache_looked_up(self, *, hits: int, misses: int) -> None:
        self._state("cache_looked_up", hits=hits, misses=misses)

    def cache_failed(self, *, operation: str) -> None:
        self._state("cache_failed", operation=operation)

    def cache_opened(self, *, entries: Callable[[], int], size: Callable[[], int]) -> None:
        self._state("cache_opened", entries=entries(), size=size())

    def model_readiness_changed(self, *, model: str, ready: bool) -> None:
        self._state("model_readiness_changed", model=model, ready=ready)

    def model_certified(self, *, model: str, certified: bool) -> None:
        self._state("model_certified", model=model, certified=certified)

    def model_removed(self, *, model: str) -> None:
        self._state("model_removed", model=model)

    def remote_changed(self, *, model: str, away: bool) -> None:
        self._state("remote_changed", model=model, away=away)

    def fallback_asked(self, *, model: str, reason: str) -> None:
        self._state("fallback_asked", model=model, reason=reason)

    def connections_changed(self, *, open_connections: int) -> None:
        self._state("connections_changed", open_connections=open_connections)

    def connection_refused(self, *, reason: str) -> None:
        self._state("connection_refused", reason=reason)


def logit_of(ids: Sequence[int]) -> float:
    """A number that depends on every id and on its place."""
    total = 0
    for token in ids:
        total = (total * 31 + int(token)) % _LOGITS
    return float(np.float32(total / _LOGITS * 20 - 10))


class GatedEngine:
    """Computes `logit_of` rows of numbers, so that a result given to the wrong item is seen. Raises on the number
    `POISON`, gives NaN for `NOT_A_NUMBER`; while `gate` is cleared, every pass waits.
    """

    name = "arithmetic"

    def __init__(
        self,
        *,
        workers: int = 1,
        tokens: int = 512,
        pairs: int = 64,
        seconds_per_pass: float = 0.0,
        seconds_per_token: float = 0.0,
    ) -> None:
        self.workers = workers
        self.preferred_batch = BatchLimits(tokens=tokens, pairs=pairs)
        self.batches: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.offset = 0.0
        self._seconds_per_pass = seconds_per_pass
        self._seconds_per_token = seconds_per_token

    def compute(self, batch: list[list[int]]) -> list[float]:
        self.batches.append(batch)
        self.gate.wait(timeout=30)
        seconds = self._seconds_per_pass + self._seconds_per_token * sum(map(len, batch))
        if seconds:
            time.sleep(seconds)
        if self.broken or any(POISON in ids for ids in batch):
            raise RuntimeError("an operator of the graph failed")
        return [float("nan") if NOT_A_NUMBER in ids else logit_of(ids) + self.offset for ids in batch]


class ArithmeticEngine(GatedEngine):
    """A classifier whose logits are `logit_of` the ids."""

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        values = self.compute([encoding.ids.tolist() for encoding in encodings])
        return np.array(values, dtype=np.float32)[:, None]


class WordScorer:
    """Every word is a token. The words "poison" and "nan" have the ids that an `ArithmeticEngine` fails on."""

    pad_id = 0
    task = Classify(outputs=1)
    activation: Activation = staticmethod(identity)

    def __init__(self, *, max_length: int = 512, takes_instruction: bool = False) -> None:
        self.max_length = max_length
        self._takes_instruction = takes_instruction
        self.fingerprint = f"words-{max_length}"

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[Encoding]:
        if instruction is not None and not self._takes_instruction:
            raise InvalidRequest("this model does not take an instruction")
        start = [*map(_word_id, query.split()), _SEPARATOR]
        room = min(self.room(query), max_document_tokens or self.max_length)
        tokenized = [list(map(_word_id, document.split())) for document in documents]
        return EncodedPairs(
            [Encoding(np.array(start + ids[:room], dtype=np.int64), len(start)) for ids in tokenized],
            np.array([max(0, len(ids) - room) for ids in tokenized], dtype=np.int64),
        )

    def room(self, query: str, instruction: str | None = None) -> int:
        room = self.max_length - len(query.split()) - 1
        if room < 1:
            raise InvalidRequest(TooLong(problem="the query leaves no room for a document: shorten the query"))
        return room

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        return [_word_edges(text) for text in texts]

    def drops(self, text: str) -> bool:
        return not text.split()

    def interpret(self, rows: Iterable[FloatArray], /) -> FloatArray:
        return stacked(rows)[:, 0]

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)


def _word_edges(text: str) -> Edges:
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    characters = np.array([0, *ends[:-1], len(text)] if ends else [0], dtype=np.int64)
    return Edges(characters, np.ones(len(characters), dtype=np.bool_))


def _word_id(word: str) -> int:
    return _SPECIAL.get(word) or 1000 + zlib.crc32(word.encode("utf-8", "surrogatepass")) % _VOCABULARY


def score_of(query: str, document: str) -> float:
    """What `WordScorer` and `ArithmeticEngine` must give a pair, whatever it was batched with."""
    (encoding,) = WordScorer().encode(query, [document], max_document_tokens=None).encodings
    return logit_of(encoding.ids.tolist())


class ScriptedCache:
    """A cache that fails, or hangs until it is cancelled, on command."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.looked_up: list[list[bytes]] = []
        self.failing = False
        self.hanging = False
        self.closed = False

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.looked_up.append(list(keys))
        await self._misbehave()
        return [self.entries.get(key) for key in keys]

    async def put_many(self, entries: Mapping[bytes, bytes], *, owner: str = "") -> None:
        await self._misbehave()
        self.entries.update(entries)

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def _misbehave(self) -> None:
        if self.failing:
            raise CacheUnavailable("told to fail")
        if self.hanging:
            await asyncio.Event().wait()


class RecordingStage:
    """A stage that scores by `score_of` and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], ScoreOptions]] = []
        self.failure: Exception | None = None
        self.values: Mapping[str, float] = {}
        self.hanging = False

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        self.asked.append((query, list(documents), options))
        if self.failure is not None:
            raise self.failure
        if self.hanging:
            await asyncio.Event().wait()
        values = [self.values.get(document, score_of(query, document)) for document in documents]
        lengths = [len(document.split()) for document in documents]
        return Scores(
            values=np.array(values, dtype=np.float32),
            tokens=np.array(lengths, dtype=np.int64),
            dropped=np.array([length // 10 for length in lengths], dtype=np.int64),
        )


class Runnable(Protocol[T_contra, R_co]):
    """A `GatedEngine` that runs payloads of some kind."""

    workers: int
    preferred_batch: BatchLimits
    gate: threading.Event

    def run(self, batch: Sequence[T_contra], /) -> Results[R_co]: ...


@asynccontextmanager
async def running_batcher(
    engine: Runnable[T, R],
    observer: Observer,
    *,
    max_waiting_tokens: int = 1_000_000,
    stuck_after_s: float = 60.0,
    worker_class: type[Worker] = Worker,
) -> AsyncIterator[Batcher[T, R]]:
    """A batcher that serves until the context is left."""
    with worker_class(name="infer", threads=engine.workers) as worker:
        batcher = _batcher(engine, worker, observer, max_waiting_tokens=max_waiting_tokens, stuck_after_s=stuck_after_s)
        serving = asyncio.create_task(batcher.run())
        try:
            yield batcher
        finally:
            engine.gate.set()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def idle_batcher(*, max_waiting_tokens: int = 1_000_000) -> Batcher[Encoding, FloatArray]:
    """A batcher that admits requests, and serves none."""
    worker = Worker(name="infer", threads=1)
    return _batcher(ArithmeticEngine(), worker, RecordingObserver(), max_waiting_tokens=max_waiting_tokens)


def _batcher(
    engine: Runnable[T, R],
    worker: Worker,
    observer: Observer,
    *,
    max_waiting_tokens: int,
    stuck_after_s: float = 60.0,
) -> Batcher[T, R]:
    planner = BatchPlanner(
        max_batch_tokens=engine.preferred_batch.tokens,
        max_batch_pairs=engine.preferred_batch.pairs,
        workers=engine.workers,
        padded=engine.preferred_batch.padded,
        rounded_length=engine.preferred_batch.rounded_length,
    )
    return Batcher(
        planner,
        ThreadPasses(engine.run, worker),
        max_waiting_tokens=max_waiting_tokens,
        model="fake",
        observer=observer,
        stuck_after_s=stuck_after_s,
    )


async def put_into_service(model: ServedModel, loaded: LoadedModel) -> None:
    """Serve what passes its canary, as the first version of a model does."""
    await try_out(loaded)
    model.serve(loaded)


@dataclass(kw_only=True)
class FakeService:
    """A whole service without model files: what a request meets between dialect and engine is the real thing."""

    observer: Any = field(default_factory=RecordingObserver)
    engine: ArithmeticEngine = field(default_factory=ArithmeticEngine)
    scorer: WordScorer = field(default_factory=WordScorer)
    cache: Cache | None = None
    activation: Activation = identity
    canary: Canary = _CANARY
    passages: PassagePlan = field(default_factory=PassagePlan)
    fusion: FusionPlan = field(default_factory=FusionPlan)
    embedder: Embedder | None = None
    confidence: ConfidenceEstimator | None = field(default_factory=lambda: ConfidenceEstimator(ConfidencePlan(), None))
    truncation: Truncation = Truncation.TRUNCATE
    max_documents: int = 10_000
    max_query_chars: int = 32_768
    max_waiting_tokens: int = 1_000_000
    request_timeout_s: float = 30.0
    cache_per_key: bool = False
    stuck_after_s: float = 60.0
    fallback: str | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RerankService]:
        """Serves the models "fake" (alias "vendor/fake") and "broken", which could not be loaded."""
        model = ServedModel(name="fake", aliases=("vendor/fake",), observer=self.observer)
        broken = ServedModel(name="broken", aliases=(), observer=self.observer)
        broken.fail("no model folder /srv/secret/path")
        limits = Limits(
            max_documents=self.max_documents,
            max_query_chars=self.max_query_chars,
            images=IMAGES,
            request_timeout_s=self.request_timeout_s,
            loading_timeout_s=0,
            cache_per_key=self.cache_per_key,
        )
        with (
            SharedWorker.open(name="tokenize", threads=2) as tokenizing,
            SharedWorker.open(name="background", threads=1) as background,
        ):
            async with running_batcher(
                self.engine,
                self.observer,
                max_waiting_tokens=self.max_waiting_tokens,
                stuck_after_s=self.stuck_after_s,
            ) as batcher:
                loaded = self._loaded(batcher, tokenizing)
                await put_into_service(model, loaded)
                watching = asyncio.create_task(model.watch(loaded))
                try:
                    yield RerankService(
                        Catalog([model, broken], default="fake", fallback=self.fallback),
                        limits=limits,
                        observer=self.observer,
                        background=background,
                    )
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)

    def _loaded(self, batcher: Batcher[Encoding, FloatArray], tokenizing: SharedWorker) -> LoadedModel:
        direct = PointwiseStage(self.scorer, batcher, tokenizing)
        budgeted = BudgetStage(direct, batcher, longest=self.scorer.max_length)
        cached = (
            CachedStage(budgeted, self.cache, fingerprint=self.scorer.fingerprint, observer=self.observer)
            if self.cache is not None
            else budgeted
        )
        passages = PassageStage(
            cached, self.scorer, batcher, tokenizing, plan=self.passages, truncation=self.truncation
        )
        fused = FusionStage(
            SeveralQueriesStage(BlankStage(passages, tokenizing, drops=self.scorer.drops)), plan=self.fusion
        )
        written = DiversityStage(fused, tokenizing, plan=DiversityPlan(), own=self.embedder)
        spans = SpanStage(written, self.scorer, batcher, tokenizing, plan=self.passages, activation=self.activation)
        return LoadedModel(
            stage=LongQueryStage(spans, self.scorer, tokenizing),
            direct=direct,
            activation=self.activation,
            canary=self.canary,
            details={
                "engine": self.engine.name,
                "scorer": "words",
                "max_length": self.scorer.max_length,
                "url": "http://models.internal/v1",
            },
            ignores=("windows",),
            confidence=self.confidence,
            alive_at=batcher.alive_at,
        )


@dataclass(frozen=True)
class NvidiaMemory:
    used: int
    total: int


class NvidiaLibrary:
    """Answers like NVIDIA's library: two GPUs, the second of which does not tell its memory."""

    class NVMLError(Exception):
        """What NVIDIA's library raises."""

    def __init__(self, *, driver: bool = True) -> None:
        self._driver = driver

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        if not self._driver:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - the library's name
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - the library's name
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> NvidiaMemory:  # noqa: N802 - the library's name
        if handle == 1:
            raise self.NVMLError("not supported")
        return NvidiaMemory(used=3 * 2**30, total=80 * 2**30)
