"""Composition root: builds the service from settings and registry, and owns what runs beside requests."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict

from psutil import virtual_memory
from pydantic import SecretStr

from rerankd.batching.admission import Estimate, TextLengths
from rerankd.batching.batcher import Batcher
from rerankd.batching.passes import CallPasses, Passes, ThreadPasses
from rerankd.batching.planner import BatchPlanner
from rerankd.batching.ticket import Intake
from rerankd.cache import connect_cache
from rerankd.cache.access import Access
from rerankd.cache.base import Cache
from rerankd.cache.memory import MemoryCache
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.worker import INFERENCE_THREAD, Worker, available_cores
from rerankd.config.named_models import served_registry
from rerankd.config.registry import ModelSpec, Registry
from rerankd.config.settings import Settings
from rerankd.domain import ConfidencePlan, ImageLimits, PassagePlan, ScoreOptions, Truncation
from rerankd.engines import check_files, load_any_engine, release_memory
from rerankd.engines.base import Engine, EngineSpec, RemarkingEngine, RemoteEngine
from rerankd.engines.fingerprint import engine_fingerprint
from rerankd.errors import ConfigError
from rerankd.scorers import BLOCK_SCORERS, COMPARISON_SCORERS, GROUP_SCORERS, LIST_SCORERS, SCORERS, load_any_scorer
from rerankd.scorers.anchors import Anchors, identity_of
from rerankd.scorers.base import ReadsImages, Scorer, ScorerSpec
from rerankd.scorers.calibration import Calibration, ConfidenceEstimator
from rerankd.serving.certifying import Certificate, certify
from rerankd.serving.choosing import choose
from rerankd.serving.faults import MortalWorker
from rerankd.serving.hosting import ModelHost
from rerankd.serving.model import Canary, GoldenPair, LoadedModel
from rerankd.serving.model_files import (
    NO_CALIBRATION,
    adapter_content,
    adapter_folder,
    anchor_file,
    calibration_file,
    file_marks,
    model_content,
    model_folder,
    template_folders,
    weight_bytes,
)
from rerankd.serving.probe import Probe, probe
from rerankd.serving.profiles import with_profile
from rerankd.serving.service import Limits, RerankService
from rerankd.serving.stages import ScheduleCheck, StageBuilder
from rerankd.serving.version import Opening
from rerankd.tasks.embed_tokens import EmbedTokens
from rerankd.tasks.prune import Prune
from rerankd.tasks.read_vectors import ReadVectors
from rerankd.tasks.weigh_words import WeighWords
from rerankd.telemetry.observer import Observer

logger = logging.getLogger(__name__)

# Of threads that read and write texts: where cores are short, one key's texts must not slow another key's passes.
_NICENESS = 12
# What an answer may take behind the deadline of its request.
_ANSWER_S = 5.0
_NO_REFERENCE = Canary(pairs=(GoldenPair("what is a canary", "A canary is a small yellow bird.", 0.0),), tolerance=None)
# Asking would cost money again and again, and a model that is away for a minute would be lost until a restart.
_NOT_ASKED = Canary(pairs=(), tolerance=None)


# Their scores depend on the other documents of a request.
_RELATIVE_SCORERS: Final = frozenset(
    [*LIST_SCORERS, *GROUP_SCORERS, *BLOCK_SCORERS, *COMPARISON_SCORERS, "listwise-embedding"]
)
_EMBEDDING_SCORERS: Final = ("bi-encoder", "listwise-embedding")
_AnyEngine = Engine[Any, Any] | RemoteEngine[Any, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """What a model's requests are read with, and what is known of its engine. `spec` is the registry's with its
    profile's choice. `independent`: whether a text's score is its own; None: nobody knows.
    """

    spec: ModelSpec
    folder: Path
    scorer: Scorer
    canary: Canary
    fingerprint: str
    independent: bool | None
    calibration: Calibration | None
    anchors: Anchors | None
    certificate: Certificate | None
    engine_name: str
    remark: str

    @property
    def reusable(self) -> bool:
        """Whether scores may be used again, as far as anybody knows."""
        return self.independent is not False


@dataclass(frozen=True, slots=True)
class _Parts:
    """What loading a model gives, before anything runs."""

    read: Read
    engine: _AnyEngine

    @property
    def scorer(self) -> Scorer:
        return self.read.scorer

    @property
    def fingerprint(self) -> str:
        return self.read.fingerprint


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is loaded and runs. `trouble` says why its remote model does not answer now; mostly empty."""

    read: Read
    intake: Intake[Any, Any]
    trouble: Callable[[], str]


class KnownEngine(TypedDict):
    """Of `Read`, what only the process with the engine knows."""

    fingerprint: str
    independent: bool | None
    certificate: Certificate | None
    engine_name: str
    remark: str


class EngineSource(Protocol):
    """Where the engines of models run."""

    def open(self, spec: ModelSpec, *, wanted: bool) -> AbstractAsyncContextManager[Opened]:
        """Load a model; leaving the context releases it. One that requests wait for (`wanted`) does not wait behind
        others.

        Raises:
            ConfigError: it cannot be used; the message says why.
            SourceUnreachable: the place that its files come from cannot be reached now.
        """


@asynccontextmanager
async def running_service(
    settings: Settings, observer: Observer, *, only: Collection[str | None] | None = None
) -> AsyncIterator[RerankService]:
    """A service whose models load in the background; leaving the context stops all of it.

    `only` names the models to load, None among them for the default one; without it all of the registry are loaded.

    Raises:
        ConfigError: the registry or the cache URL is unusable, or what it names can never be a cache.
    """
    async with running_host(settings, observer, only=only) as (service, _):
        yield service


async def cache_of(settings: Settings, observer: Observer) -> Cache | None:
    """The cache that the settings name, once it was asked whether it can be used.

    Raises:
        ConfigError: it never can.
    """
    secret = _text(settings.cache_secret) or None
    url = settings.cache_url.get_secret_value()
    return await connect_cache(url, access=access_of(settings), secret=secret, observer=observer)


def access_of(settings: Settings) -> Access:
    """What the settings say of reaching Redis, beside its URL."""

    def path(file: Path | None) -> str | None:
        return str(file) if file else None

    return Access(
        password=_text(settings.cache_password),
        sentinel_password=_text(settings.cache_sentinel_password),
        ca_file=path(settings.cache_ca_file),
        cert_file=path(settings.cache_cert_file),
        key_file=path(settings.cache_key_file),
    )


def _text(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


@asynccontextmanager
async def running_host(
    settings: Settings,
    observer: Observer,
    *,
    only: Collection[str | None] | None = None,
    engines: EngineSource | None = None,
) -> AsyncIterator[tuple[RerankService, ModelHost]]:
    """As `running_service`, with what changes its models while it runs. `engines` None: they run in this process."""
    fallback = settings.model_fallback if only is None else None
    async with AsyncExitStack() as stack:
        registry = _read_registry(settings, only)
        registry.check_fallback(fallback)
        cache = await cache_of(settings, observer)
        if cache is not None:
            stack.push_async_callback(cache.close)
        if isinstance(cache, MemoryCache):
            observer.cache_opened(entries=cache.__len__, size=lambda: cache.size)
        if engines is None:
            engines = stack.enter_context(LocalEngines.running(settings, observer))
        tokenizing = stack.enter_context(
            SharedWorker.open(
                name="tokenize", threads=available_cores(), per_caller=_tokenizing(settings), niceness=_NICENESS
            )
        )
        background = stack.enter_context(SharedWorker.open(name="background", threads=1, niceness=_NICENESS))
        host = ModelHost(
            _Files(settings, only, cache, observer, engines, tokenizing),
            registry,
            fallback=fallback,
            observer=observer,
            tokenizing=tokenizing,
            drain_s=settings.request_timeout_s + _ANSWER_S,
        )
        await stack.enter_async_context(host.running())
        yield RerankService(host.catalog, limits=_limits(settings), observer=observer, background=background), host


def _read_registry(settings: Settings, only: Collection[str | None] | None) -> Registry:
    registry = served_registry(settings)
    return registry if only is None else registry.only(only)


def _tokenizing(settings: Settings) -> int:
    """How many of the threads that tokenize one caller may have. Where there may be others it is a quarter: they find a
    free thread, and their passes keep most of the cores.
    """
    keyed = settings.api_keys or settings.api_keys_file is not None
    return max(1, available_cores() // 4) if keyed else available_cores()


def _image_limits(settings: Settings) -> ImageLimits:
    """How many images a request may have, and how large."""
    return ImageLimits(images=settings.max_images, bytes=settings.max_image_bytes)


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_documents=settings.max_documents,
        max_query_chars=settings.max_query_chars,
        images=_image_limits(settings),
        request_timeout_s=settings.request_timeout_s,
        loading_timeout_s=settings.loading_timeout_s,
        cache_per_key=settings.cache_scope == "key",
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """The models that settings name, from their files."""

    settings: Settings
    only: Collection[str | None] | None
    cache: Cache | None
    observer: Observer
    engines: EngineSource
    tokenizing: SharedWorker

    def registry(self) -> Registry:
        return _read_registry(self.settings, self.only)

    def marks(self, spec: ModelSpec) -> Hashable:
        return file_marks(spec, self.settings)

    def expect(self, specs: Sequence[ModelSpec]) -> None:
        """Tell how much memory loading will take, at least: the old versions stay until the new ones serve."""
        needed = sum(weight_bytes(spec, self.settings) for spec in specs)
        available = virtual_memory().available
        told = {"models": [spec.name for spec in specs], "weights_mb": needed >> 20, "available_mb": available >> 20}
        if needed > available:
            logger.warning("models load beside those that serve, and their weights exceed the free memory", extra=told)
        else:
            logger.info("models load beside those that serve", extra=told)

    def release(self) -> None:
        release_memory()

    def opening(self, spec: ModelSpec, *, wanted: bool) -> Opening:
        return ModelLoader(self.settings, self.cache, self.observer, self.engines, self.tokenizing).opening(
            spec, wanted=wanted
        )


@dataclass(frozen=True, slots=True)
class LocalEngines:
    """Loads models into this process, one at a time: loading takes cores from those that serve."""

    settings: Settings
    observer: Observer
    loading: Worker
    waking: Worker

    @classmethod
    @contextmanager
    def running(cls, settings: Settings, observer: Observer) -> Iterator["LocalEngines"]:
        with Worker(name="load", threads=1) as loading, Worker(name="wake", threads=1) as waking:
            yield cls(settings, observer, loading, waking)

    @asynccontextmanager
    async def open(self, spec: ModelSpec, *, wanted: bool) -> AsyncIterator[Opened]:
        """Load a model and run its batcher; see `EngineSource`."""
        worker = self.waking if wanted else self.loading
        parts = await worker.run(load_parts, spec, self.settings)
        async with self._passes(spec.name, parts.engine) as passes, asyncio.TaskGroup() as tasks:
            batcher = self._batcher(parts, passes)
            running = tasks.create_task(batcher.run())
            yield Opened(parts.read, batcher, partial(_trouble, parts.engine))
            running.cancel()

    @asynccontextmanager
    async def _passes(self, model: str, engine: _AnyEngine) -> AsyncIterator[Passes[Any, Any]]:
        """How the engine's passes run; leaving the context releases what they run on."""
        if isinstance(engine, RemoteEngine):
            self._report_on(model, engine)
            try:
                yield CallPasses(engine.ask, limit=engine.workers)
            finally:
                await engine.client.close()
            return
        worker = MortalWorker if self.settings.debug_faults else Worker
        inference = worker(name=f"{INFERENCE_THREAD}{model}", threads=engine.workers)
        passes = ThreadPasses(engine.run, inference)
        try:
            yield passes
        finally:
            # A pass that hangs is waited for, and the other models go on meanwhile.
            await asyncio.to_thread(inference.close)
            passes.release()

    def _report_on(self, model: str, engine: RemoteEngine[Any, Any]) -> None:
        """Tell the observer whether a remote model is away."""
        observer = self.observer
        engine.client.on_change = lambda trouble: observer.remote_changed(model=model, away=bool(trouble))
        observer.remote_changed(model=model, away=False)

    def _batcher(self, parts: _Parts, passes: Passes[Any, Any]) -> Batcher[Any, Any]:
        preferred = parts.engine.preferred_batch
        spec = parts.read.spec
        planner = BatchPlanner(
            max_batch_tokens=spec.batch_tokens or preferred.tokens,
            max_batch_pairs=spec.batch_pairs or preferred.pairs,
            workers=passes.limit,
            stretch=preferred.stretch,
            padded=preferred.padded,
            rounded_length=preferred.rounded_length,
        )
        return Batcher(
            planner,
            passes,
            max_waiting_tokens=self.settings.max_waiting_tokens,
            model=spec.name,
            observer=self.observer,
            stuck_after_s=_patience_s(parts.engine, self.settings),
            coalesce=parts.read.reusable,
        )


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Puts the stages of requests around models."""

    settings: Settings
    cache: Cache | None
    observer: Observer
    engines: EngineSource
    tokenizing: SharedWorker

    def opening(self, spec: ModelSpec, *, wanted: bool) -> Opening:
        """What loads a model."""
        return partial(self._open, spec, wanted=wanted)

    @asynccontextmanager
    async def _open(self, spec: ModelSpec, *, wanted: bool) -> AsyncIterator[LoadedModel]:
        async with self.engines.open(spec, wanted=wanted) as opened:
            yield self._loaded(spec, opened)

    def _loaded(self, spec: ModelSpec, opened: Opened) -> LoadedModel:
        read, intake = opened.read, opened.intake
        builder = StageBuilder(
            batcher=intake,
            tokenizing=self.tokenizing,
            cache=self.cache if read.reusable else None,
            fingerprint=read.fingerprint,
            observer=self.observer,
            model=spec.name,
            passages=spec.passages,
            truncation=Truncation(spec.truncation),
            fusion=spec.fusion,
            diversity=spec.diversity,
            anchor_plan=spec.anchors,
            calibrated=read.calibration.relevance.activation if read.calibration else None,
            anchors=read.anchors,
            images=_image_limits(self.settings),
        )
        stages = read.scorer.by_kind(builder)
        return LoadedModel(
            stage=stages.whole,
            direct=stages.direct,
            activation=stages.activation,
            canary=read.canary,
            details={
                "scorer": read.spec.scorer,
                "engine": read.engine_name,
                "revision": spec.revision or "",
                "max_length": read.scorer.max_length,
                "scores": stages.scores,
                **({"prunes": True} if stages.prunes else {}),
                **({} if read.independent is None else {"batch_independent": read.independent}),
                **({"calibration": read.calibration.fingerprint} if read.calibration else {}),
                **({} if read.certificate is None else {"certified": read.certificate.certified}),
            },
            warning=read.certificate.reason if read.certificate else "",
            ignores=stages.ignores,
            prunes=stages.prunes,
            embedder=stages.embedder,
            confidence=_confidence(read),
            remark=read.remark,
            alive_at=intake.alive_at,
            trouble=opened.trouble,
            estimate=partial(_tokens_in, intake.lengths, stages.estimate),
            fits=partial(_fits, intake, stages.estimate),
        )


def _confidence(read: Read) -> ConfidenceEstimator | None:
    """None for models whose scores depend on a request's other documents."""
    if read.spec.scorer in _RELATIVE_SCORERS:
        return None
    return ConfidenceEstimator(read.spec.confidence, read.calibration.confidence if read.calibration else None)


def _tokens_in(
    lengths: TextLengths,
    estimate: Callable[[str, Sequence[str], ScoreOptions], Estimate],
    query: str,
    documents: Sequence[str],
    options: ScoreOptions,
) -> int:
    """About how many tokens a request has, as admission believes."""
    return lengths.forecast(estimate(query, documents, options), caller=options.terms.caller).work.tokens


async def _fits(
    intake: Intake[Any, Any],
    estimate: Callable[[str, Sequence[str], ScoreOptions], Estimate],
    query: str,
    documents: Sequence[str],
    options: ScoreOptions,
) -> bool:
    """Whether a request would be answered before its deadline, as admission believes."""
    return await intake.fits(estimate(query, documents, options), options.terms)


def _trouble(engine: _AnyEngine) -> str:
    """Why an engine's remote model does not answer now; empty for one that computes here."""
    return engine.client.trouble if isinstance(engine, RemoteEngine) else ""


def _patience_s(engine: _AnyEngine, settings: Settings) -> float:
    """How long a pass may take: one that is given up while its engine still tries again would be asked for twice. It
    may have to wait for the call before.
    """
    if isinstance(engine, RemoteEngine):
        return max(settings.stuck_after_s, 2 * engine.client.longest_s)
    return settings.stuck_after_s


def load_parts(spec: ModelSpec, settings: Settings) -> _Parts:
    """Fetch and load a model's files, and try it. Blocking: seconds for a small model, minutes for a download.

    Raises:
        ConfigError: the model cannot be used; the message says why.
    """
    spec = choose(spec, settings)
    folder = model_folder(spec, settings)
    spec = with_profile(spec, profiles=settings.profiles, content=partial(model_content, spec, folder))
    scorer = _load_scorer(spec, folder, settings)
    engine_spec = _engine_spec(spec, folder, scorer, settings)
    engine = load_any_engine(spec.engine, engine_spec)
    canary = _canary(spec, folder, scorer, asked=isinstance(engine, RemoteEngine))
    computed = engine_fingerprint(spec.engine, engine, engine_spec)
    contents = [model_content(spec, folder), adapter_content(engine_spec.adapter)]
    identity = [spec.name, spec.revision, *contents, computed, scorer.fingerprint]
    # Golden pairs hold a long one already.
    tried = _tried(spec, engine, scorer, full_length=canary.tolerance is None)
    read = Read(
        spec=spec,
        folder=folder,
        scorer=scorer,
        canary=canary,
        fingerprint=json.dumps(identity),
        independent=None if tried is None else tried.independent,
        calibration=_calibration(spec, folder, settings),
        anchors=_anchors(spec, folder, scorer, settings),
        certificate=_certified(spec, engine, scorer),
        engine_name=engine.name,
        remark=engine.remark if isinstance(engine, RemarkingEngine) else "",
    )
    return _Parts(read, engine)


def read_parts(spec: ModelSpec, folder: Path, settings: Settings, known: KnownEngine, *, asked: bool) -> Read:
    """What requests are read with, for a model whose engine another process has loaded; `asked`: it asks a remote
    model. Blocking.

    Raises:
        ConfigError: the folder's files have changed meanwhile.
    """
    scorer = _load_scorer(spec, folder, settings)
    return Read(
        spec=spec,
        folder=folder,
        scorer=scorer,
        canary=_canary(spec, folder, scorer, asked=asked),
        calibration=_calibration(spec, folder, settings),
        anchors=_anchors(spec, folder, scorer, settings),
        **known,
    )


def _canary(spec: ModelSpec, folder: Path, scorer: Scorer, *, asked: bool) -> Canary:
    """The pairs that tell whether a model is well; one that is asked for over the network is not tried."""
    if asked:
        return _NOT_ASKED
    # With an adapter a model no longer scores its golden pairs as before.
    canary = golden_pairs(folder) if spec.scorer in SCORERS and not spec.adapter else _NO_REFERENCE
    if not isinstance(scorer, ReadsImages):
        return canary
    return replace(canary, pairs=[replace(pair, document=scorer.samples(pair.document)[-1]) for pair in canary.pairs])


def check_parts(spec: ModelSpec, folder: Path, settings: Settings) -> None:
    """Check all of a model that can be known without reading its weights: tokenizer, configuration, template, which
    weights there are, and whether scorer and engine fit together.

    Raises:
        ConfigError: loading it would fail; the message says why.
    """
    scorer = _load_scorer(spec, folder, settings)
    check_files(spec.engine, _engine_spec(spec, folder, scorer, settings))
    golden_pairs(folder)
    _calibration(spec, folder, settings)
    _anchors(spec, folder, scorer, settings)


def _calibration(spec: ModelSpec, folder: Path, settings: Settings) -> Calibration | None:
    path = calibration_file(spec, folder, settings)
    return Calibration.read(path) if path else None


def _anchors(spec: ModelSpec, folder: Path, scorer: Scorer, settings: Settings) -> Anchors | None:
    path = anchor_file(spec, settings)
    return Anchors.read(path, identity=_anchor_identity(spec, folder, scorer, settings)) if path else None


def _anchor_identity(spec: ModelSpec, folder: Path, scorer: Scorer, settings: Settings) -> str:
    contents = [model_content(spec, folder), adapter_content(adapter_folder(spec, settings))]
    return identity_of(contents, scorer=scorer.fingerprint)


def anchor_identity(spec: ModelSpec, settings: Settings) -> str:
    """What tells a model's anchors from those of others. Blocking: its files are fetched and read, but not loaded.

    Raises:
        ConfigError: it cannot be used, or anchors mean nothing to it.
    """
    spec = choose(spec, settings)
    _check_anchors(spec)
    folder = model_folder(spec, settings)
    return _anchor_identity(spec, folder, _load_scorer(spec, folder, settings), settings)


def _check_anchors(spec: ModelSpec) -> None:
    if spec.scorer not in SCORERS:
        raise ConfigError(f"anchors are for scorers of pairs, and {spec.scorer!r} is none; leave them out")


def _engine_spec(spec: ModelSpec, folder: Path, scorer: Scorer, settings: Settings) -> EngineSpec:
    return EngineSpec(
        folder=folder,
        pad_id=scorer.pad_id,
        task=scorer.task,
        workers=spec.workers,
        trust_remote_code=spec.trust_remote_code,
        adapter=adapter_folder(spec, settings),
        devices=spec.devices,
        options=spec.engine_options,
    )


def _load_scorer(spec: ModelSpec, folder: Path, settings: Settings) -> Scorer:
    check_cutting(spec)
    if spec.anchors.file:
        _check_anchors(spec)
    if spec.diversity.weight and spec.diversity_model is None and spec.scorer not in _EMBEDDING_SCORERS:
        raise ConfigError(f"diversity: {spec.scorer!r} has no vectors of documents; set diversity_model")
    scorer_spec = ScorerSpec(
        folder=folder,
        max_length=spec.max_length,
        source=spec.path,
        templates=template_folders(settings),
        max_image_pixels=settings.max_image_pixels,
        options=spec.options,
    )
    scorer = load_any_scorer(spec.scorer, scorer_spec)
    scorer.by_kind(ScheduleCheck())
    return scorer


def check_cutting(spec: ModelSpec) -> None:
    """Check that an entry's scorer takes what it says of long documents.

    Raises:
        ConfigError: it does not.
    """
    if spec.scorer not in _RELATIVE_SCORERS:
        return
    if spec.calibration not in ("", NO_CALIBRATION) or spec.confidence != ConfidencePlan():
        raise ConfigError(
            f"calibration and confidence are for scorers of pairs; scores of {spec.scorer!r} depend on a request's "
            "other documents: leave them out"
        )
    if spec.truncation != "truncate" or spec.passages != PassagePlan():
        raise ConfigError(
            f"truncation and passages are for scorers of pairs; {spec.scorer!r} cuts what does not fit into its "
            "prompt: leave them out"
        )


def _tried(spec: ModelSpec, engine: _AnyEngine, scorer: Scorer, *, full_length: bool) -> Probe | None:
    """What trying the model found; None for one whose scores nobody compares."""
    if isinstance(engine, RemoteEngine) or not _is_comparable(scorer):
        return None
    found = probe(engine, scorer, full_length=full_length)
    if not found.independent:
        logger.warning(
            "scores depend on what else is in the batch: they are neither cached nor shared",
            extra={"model": spec.name, "largest_difference": found.largest_difference, "tolerance": found.tolerance},
        )
    return found


def _certified(spec: ModelSpec, engine: _AnyEngine, scorer: Scorer) -> Certificate | None:
    """Whether the model answers obvious questions; None for one that is not asked.

    Raises:
        ConfigError: it does not, and the entry is strict.
    """
    if isinstance(engine, RemoteEngine) or not _is_comparable(scorer):
        return None
    certificate = certify(engine, scorer)
    if certificate is not None and not certificate.certified:
        if spec.certify == "strict":
            raise ConfigError(f'{certificate.reason}, or set certify = "warn" to serve it all the same')
        logger.warning("model is uncertified", extra={"model": spec.name, "reason": certificate.reason})
    return certificate


def _is_comparable(scorer: Scorer) -> bool:
    """Whether numbers come out that can be compared. A remote model is not tried, since that may cost money."""
    return scorer.task.outputs is not None or isinstance(scorer.task, ReadVectors | EmbedTokens | WeighWords | Prune)


def golden_pairs(folder: Path) -> Canary:
    """The golden pairs that lie beside a model's weights, or else one pair without a reference."""
    path = folder / "golden.json"
    if not path.is_file():
        return _NO_REFERENCE
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
        pairs: Sequence[GoldenPair] = [
            GoldenPair(str(pair["query"]), str(pair["document"]), float(pair["logit"])) for pair in golden["pairs"]
        ]
        if not pairs:
            raise ValueError("it has no pairs")
        return Canary(pairs=pairs, tolerance=float(golden["tolerance"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a file of golden pairs: {error!r}") from None
