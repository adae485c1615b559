"""Composition root: builds the service from settings and registry, and owns what runs beside requests."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.batching.batcher import Batcher
from app.batching.planner import BatchPlanner
from app.cache import open_cache
from app.cache.base import Cache
from app.config import ModelSpec, Registry, Settings, read_registry
from app.domain import Truncation
from app.engines import load_engine
from app.engines.base import Engine, EngineSpec
from app.errors import ConfigError, SourceUnreachable
from app.model import Canary, GoldenPair, LoadedModel, ServedModel
from app.observer import Observer
from app.pipeline.cached import CachedStage
from app.pipeline.passages import PassagePolicy, PassageStage
from app.pipeline.pointwise import PointwiseStage
from app.pipeline.stage import Stage
from app.profiles import with_profile
from app.scorers import load_scorer
from app.scorers.base import PairScorer, PassageReader, ScorerSpec
from app.service import Limits, RerankService
from app.sources import Hub, allowed_files, content_hash, find_folder
from app.worker import Worker, available_cores

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 300.0
_NO_REFERENCE = Canary(pairs=(GoldenPair("what is a canary", "A canary is a small yellow bird.", 0.0),), tolerance=None)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What loading a model gives, before anything runs; `spec` is the registry's with its profile's choice."""

    spec: ModelSpec
    scorer: PairScorer
    engine: Engine
    canary: Canary
    fingerprint: str


@asynccontextmanager
async def running_service(
    settings: Settings, observer: Observer, *, only: Collection[str | None] | None = None
) -> AsyncIterator[RerankService]:
    """A service whose models load in the background; leaving the context stops all of it.

    `only` names the models to load, None among them for the default one; without it all of the registry are loaded.

    Raises:
        ConfigError: the registry or the cache URL is unusable.
    """
    registry = read_registry(settings.registry)
    if only is not None:
        registry = registry.only(only)
    cache = open_cache(settings.cache_url)
    models = [ServedModel(name=spec.name, aliases=spec.aliases, observer=observer) for spec in registry.model]
    with (
        Worker(name="load", threads=1) as loading,
        Worker(name="tokenize", threads=available_cores()) as tokenizing,
    ):
        keepers = [
            asyncio.create_task(
                _Keeper(spec, model, settings, cache, observer, loading, tokenizing).keep(), name=spec.name
            )
            for spec, model in zip(registry.model, models, strict=True)
        ]
        try:
            yield RerankService(models, default=_default(registry), limits=_limits(settings), observer=observer)
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            if cache is not None:
                await cache.close()


def _default(registry: Registry) -> str:
    return registry.default or registry.model[0].name


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_documents=settings.max_documents,
        max_query_chars=settings.max_query_chars,
        request_timeout_s=settings.request_timeout_s,
    )


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Loads one model, then keeps its batcher running until it is cancelled."""

    spec: ModelSpec
    model: ServedModel
    settings: Settings
    cache: Cache | None
    observer: Observer
    loading: Worker
    tokenizing: Worker

    async def keep(self) -> None:
        """Never raises: the other models must go on."""
        try:
            parts = await self._load()
            await self._serve(parts)
        except* ConfigError as errors:
            self.model.fail(str(errors.exceptions[0]))
        except* Exception as errors:
            logger.exception("model is lost", extra={"model": self.model.name})
            self.model.fail(f"{errors.exceptions[0]!r:.200}")

    async def _load(self) -> _Parts:
        """Load the model's files, again and again while the place they come from cannot be reached."""
        pause_s = _FIRST_RETRY_S
        while True:
            try:
                return await self.loading.run(load_parts, self.spec, self.settings)
            except SourceUnreachable as error:
                self.model.fail(f"{error} (asking again in {pause_s:.0f} s)")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_RETRY_S)

    async def _serve(self, parts: _Parts) -> None:
        with Worker(name=f"infer-{self.spec.name}", threads=parts.engine.workers) as inference:
            batcher = self._batcher(parts, inference)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(batcher.run())
                await self.model.start(self._loaded(parts, batcher))

    def _batcher(self, parts: _Parts, inference: Worker) -> Batcher:
        preferred = parts.engine.preferred_batch
        planner = BatchPlanner(
            max_batch_tokens=parts.spec.batch_tokens or preferred.tokens,
            max_batch_pairs=parts.spec.batch_pairs or preferred.pairs,
            workers=inference.threads,
        )
        return Batcher(
            planner,
            parts.engine,
            inference,
            max_waiting_tokens=self.settings.max_waiting_tokens,
            model=self.spec.name,
            observer=self.observer,
        )

    def _loaded(self, parts: _Parts, batcher: Batcher) -> LoadedModel:
        direct = PointwiseStage(parts.scorer, batcher, self.tokenizing)
        stage: Stage = direct
        if self.cache is not None:
            stage = CachedStage(direct, self.cache, fingerprint=parts.fingerprint, observer=self.observer)
        reader = parts.scorer if isinstance(parts.scorer, PassageReader) else None
        stage = PassageStage(stage, reader, self.tokenizing, policy=_passage_policy(self.spec))
        return LoadedModel(
            stage=stage,
            direct=direct,
            activation=parts.scorer.activation,
            canary=parts.canary,
            details={
                "scorer": self.spec.scorer,
                "engine": parts.engine.name,
                "revision": self.spec.revision or "",
                "max_length": parts.scorer.max_length,
            },
        )


def _passage_policy(spec: ModelSpec) -> PassagePolicy:
    return PassagePolicy(truncation=Truncation(spec.truncation), **dict(spec.passages))


def load_parts(spec: ModelSpec, settings: Settings) -> _Parts:
    """Fetch and load a model's files. Blocking: seconds for a small model, minutes for a download.

    Raises:
        ConfigError: the model cannot be used; the message says why.
    """
    folder = model_folder(spec, settings)
    spec = with_profile(spec, profiles=settings.profiles, content=partial(model_content, spec, folder))
    scorer = load_scorer(spec.scorer, ScorerSpec(folder=folder, max_length=spec.max_length, options=spec.options))
    engine = load_engine(
        spec.engine,
        EngineSpec(
            folder=folder,
            pad_id=scorer.pad_id,
            workers=spec.workers,
            trust_remote_code=spec.trust_remote_code,
            options=spec.engine_options,
        ),
    )
    content = model_content(spec, folder)
    fingerprint = json.dumps([spec.name, spec.revision, content, engine.name, scorer.fingerprint])
    return _Parts(spec, scorer, engine, golden_pairs(folder), fingerprint)


def model_content(spec: ModelSpec, folder: Path) -> str:
    """A hash over the files that a registry entry is loaded from."""
    return content_hash(folder, patterns=_patterns(spec))


def model_folder(spec: ModelSpec, settings: Settings, *, beside: Path | None = None) -> Path:
    """The local folder of a registry entry, downloaded if it names a repository.

    Raises:
        ConfigError: see `app.sources.find_folder`.
    """
    token = settings.hub_token
    return find_folder(
        spec.path,
        beside=beside or settings.registry.parent,
        hub=Hub(
            token=token.get_secret_value() if token else None,
            offline=settings.hub_offline,
            cache=settings.hub_cache,
        ),
        patterns=_patterns(spec),
    )


def _patterns(spec: ModelSpec) -> list[str]:
    file = spec.engine_options.get("file")
    return allowed_files(spec.engine, file=file if isinstance(file, str) else None, remote_code=spec.trust_remote_code)


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
            raise ValueError("it holds no pair")
        return Canary(pairs=pairs, tolerance=float(golden["tolerance"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of golden pairs: {error!r}") from None
