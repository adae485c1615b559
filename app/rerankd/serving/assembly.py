"""Composition root: builds the service from settings and registry, and owns what runs beside requests."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from psutil import virtual_memory
from pydantic import SecretStr

from rerankd.batching.admission import Admission, Estimate
from rerankd.batching.batcher import Batcher
from rerankd.batching.passes import CallPasses, Passes, ThreadPasses
from rerankd.batching.planner import BatchPlanner
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
class _Parts:
    """What loading a model gives, before anything runs. `spec` is the registry's with its profile's choice."""

    spec: ModelSpec
    scorer: Scorer
    engine: _AnyEngine
    canary: Canary
    fingerprint: str
    probe: Probe | None
    calibration: Calibration | None
    anchors: Anchors | None
    certificate: Certificate | None

    @property
    def independent(self) -> bool:
        """Whether a text's score is its own, as far as anybody knows: only then it may be used again."""
        return self.probe is None or self.probe.independent


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
    settings: Settings, observer: Observer, *, only: Collection[str | None] | None = None
) -> AsyncIterator[tuple[RerankService, ModelHost]]:
    """As `running_service`, with what changes its models while it runs."""
    fallback = settings.model_fallback if only is None else None
    async with AsyncExitStack() as stack:
        registry = _read_registry(settings, only)
        registry.check_fallback(fallback)
        cache = await cache_of(settings, observer)
        if cache is not None:
            stack.push_async_callback(cache.close)
        if isinstance(cache, MemoryCache):
            observer.cache_opened(entries=cache.__len__, size=lambda: cache.size)
        # One model at a time: loading takes cores from those that serve.
        loading = stack.enter_context(Worker(name="load", threads=1))
        waking = stack.enter_context(Worker(name="wake", threads=1))
        tokenizing = stack.enter_context(
            SharedWorker.open(
                name="tokenize", threads=available_cores(), per_caller=_tokenizing(settings), niceness=_NICENESS
            )
        )
        background = stack.enter_context(SharedWorker.open(name="background", threads=1, niceness=_NICENESS))
        host = ModelHost(
            _Files(settings, only, cache, observer, loading, waking, tokenizing),
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
    loading: Worker
    waking: Worker
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
        worker = self.waking if wanted else self.loading
        return ModelLoader(spec, self.settings, self.cache, self.observer, worker, self.tokenizing).open


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads one model and runs its batcher."""

    spec: ModelSpec
    settings: Settings
    cache: Cache | None
    observer: Observer
    loading: Worker
    tokenizing: SharedWorker

    @asynccontextmanager
    async def open(self) -> AsyncIterator[LoadedModel]:
        """Load the model; leaving the context releases it.

        Raises:
            ConfigError: it cannot be used; the message says why.
            SourceUnreachable: the place that its files come from cannot be reached now.
        """
        parts = await self.loading.run(load_parts, self.spec, self.settings)
        async with self._passes(parts.engine) as passes, asyncio.TaskGroup() as tasks:
            batcher = self._batcher(parts, passes)
            running = tasks.create_task(batcher.run())
            yield self._loaded(parts, batcher)
            running.cancel()

    @asynccontextmanager
    async def _passes(self, engine: _AnyEngine) -> AsyncIterator[Passes[Any, Any]]:
        """How the engine's passes run; leaving the context releases what they run on."""
        if isinstance(engine, RemoteEngine):
            self._report_on(engine)
            try:
                yield CallPasses(engine.ask, limit=engine.workers)
            finally:
                await engine.client.close()
            return
        worker = MortalWorker if self.settings.debug_faults else Worker
        inference = worker(name=f"{INFERENCE_THREAD}{self.spec.name}", threads=engine.workers)
        passes = ThreadPasses(engine.run, inference)
        try:
            yield passes
        finally:
            # A pass that hangs is waited for, and the other models go on meanwhile.
            await asyncio.to_thread(inference.close)
            passes.release()

    def _report_on(self, engine: RemoteEngine[Any, Any]) -> None:
        """Tell the observer whether a remote model is away."""
        observer, name = self.observer, self.spec.name
        engine.client.on_change = lambda trouble: observer.remote_changed(model=name, away=bool(trouble))
        observer.remote_changed(model=name, away=False)

    def _batcher(self, parts: _Parts, passes: Passes[Any, Any]) -> Batcher[Any, Any]:
        preferred = parts.engine.preferred_batch
        planner = BatchPlanner(
            max_batch_tokens=parts.spec.batch_tokens or preferred.tokens,
            max_batch_pairs=parts.spec.batch_pairs or preferred.pairs,
            workers=passes.limit,
            stretch=preferred.stretch,
            padded=preferred.padded,
            rounded_length=preferred.rounded_length,
        )
        return Batcher(
            planner,
            passes,
            max_waiting_tokens=self.settings.max_waiting_tokens,
            model=self.spec.name,
            observer=self.observer,
            stuck_after_s=_patience_s(parts.engine, self.settings),
            coalesce=parts.independent,
        )

    def _loaded(self, parts: _Parts, batcher: Batcher[Any, Any]) -> LoadedModel:
        builder = StageBuilder(
            batcher=batcher,
            tokenizing=self.tokenizing,
            cache=self.cache if parts.independent else None,
            fingerprint=parts.fingerprint,
            observer=self.observer,
            model=self.spec.name,
            passages=self.spec.passages,
            truncation=Truncation(self.spec.truncation),
            fusion=self.spec.fusion,
            diversity=self.spec.diversity,
            anchor_plan=self.spec.anchors,
            calibrated=parts.calibration.relevance.activation if parts.calibration else None,
            anchors=parts.anchors,
            images=_image_limits(self.settings),
        )
        stages = parts.scorer.by_kind(builder)
        return LoadedModel(
            stage=stages.whole,
            direct=stages.direct,
            activation=stages.activation,
            canary=parts.canary,
            details={
                "scorer": parts.spec.scorer,
                "engine": parts.engine.name,
                "revision": self.spec.revision or "",
                "max_length": parts.scorer.max_length,
                "scores": stages.scores,
                **({"prunes": True} if stages.prunes else {}),
                **({} if parts.probe is None else {"batch_independent": parts.probe.independent}),
                **({"calibration": parts.calibration.fingerprint} if parts.calibration else {}),
                **({} if parts.certificate is None else {"certified": parts.certificate.certified}),
            },
            warning=parts.certificate.reason if parts.certificate else "",
            ignores=stages.ignores,
            prunes=stages.prunes,
            embedder=stages.embedder,
            confidence=_confidence(parts),
            remark=parts.engine.remark if isinstance(parts.engine, RemarkingEngine) else "",
            alive_at=batcher.alive_at,
            trouble=partial(_trouble, parts.engine),
            estimate=partial(_tokens_in, batcher.admission, stages.estimate),
            fits=partial(_fits, batcher, stages.estimate),
        )


def _confidence(parts: _Parts) -> ConfidenceEstimator | None:
    """None for models whose scores depend on a request's other documents."""
    if parts.spec.scorer in _RELATIVE_SCORERS:
        return None
    return ConfidenceEstimator(parts.spec.confidence, parts.calibration.confidence if parts.calibration else None)


def _tokens_in(
    admission: Admission,
    estimate: Callable[[str, Sequence[str], ScoreOptions], Estimate],
    query: str,
    documents: Sequence[str],
    options: ScoreOptions,
) -> int:
    """About how many tokens a request has, as admission believes."""
    return admission.forecast(estimate(query, documents, options), caller=options.terms.caller).work.tokens


def _fits(
    batcher: Batcher[Any, Any],
    estimate: Callable[[str, Sequence[str], ScoreOptions], Estimate],
    query: str,
    documents: Sequence[str],
    options: ScoreOptions,
) -> bool:
    """Whether a request would be answered before its deadline, as admission believes."""
    return batcher.fits(estimate(query, documents, options), options.terms)


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
    # With an adapter a model no longer scores its golden pairs as before.
    canary = golden_pairs(folder) if spec.scorer in SCORERS and not spec.adapter else _NO_REFERENCE
    if isinstance(engine, RemoteEngine):
        canary = _NOT_ASKED
    if isinstance(scorer, ReadsImages):
        canary = replace(
            canary, pairs=[replace(pair, document=scorer.samples(pair.document)[-1]) for pair in canary.pairs]
        )
    computed = engine_fingerprint(spec.engine, engine, engine_spec)
    contents = [model_content(spec, folder), adapter_content(engine_spec.adapter)]
    identity = [spec.name, spec.revision, *contents, computed, scorer.fingerprint]
    return _Parts(
        spec=spec,
        scorer=scorer,
        engine=engine,
        canary=canary,
        fingerprint=json.dumps(identity),
        # Golden pairs hold a long one already.
        calibration=_calibration(spec, folder, settings),
        anchors=_anchors(spec, folder, scorer, settings),
        probe=_tried(spec, engine, scorer, full_length=canary.tolerance is None),
        certificate=_certified(spec, engine, scorer),
    )


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
