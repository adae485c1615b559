"""Decides which versions of which models run, and keeps the catalog true: at the start, when the registry is read
again, and when a model is loaded, unloaded or wanted. Knows no files, engines or HTTP.

A reload is all or nothing. Everything that is new or has changed loads beside what serves. If all of it can serve, the
catalog changes between two steps of the event loop; otherwise nothing changes. Requests finish on the version on which
they began.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from rerankd.concurrency.sharing import SharedWorker
from rerankd.config.registry import ModelSpec, Registry
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.serving.cascades import ServedMember, follow
from rerankd.serving.catalog import Catalog
from rerankd.serving.model import ServedModel, Status
from rerankd.serving.version import Opening, Version
from rerankd.telemetry.observer import Observer


class Source(Protocol):
    """Where models come from."""

    def registry(self) -> Registry:
        """Read the registry. Blocking.

        Raises:
            ConfigError: it is unusable; the message says why.
        """

    def marks(self, spec: ModelSpec) -> Hashable:
        """What differs once a model's files have changed. Blocking."""

    def expect(self, specs: Sequence[ModelSpec]) -> None:
        """Tell the operator what is going to be loaded beside what serves. Blocking."""

    def release(self) -> None:
        """Give back what a version held that is gone now. Blocking."""

    def opening(self, spec: ModelSpec, *, wanted: bool) -> Opening:
        """What loads the model; one that requests wait for (`wanted`) does not wait behind others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The names of the models that a reload added, replaced and removed, and the default model then. `changed`: models
    that keep what they loaded, and have other aliases or another fallback.
    """

    added: Sequence[str] = ()
    replaced: Sequence[str] = ()
    changed: Sequence[str] = ()
    removed: Sequence[str] = ()
    default: str


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A served model, where it is loaded from (empty for a cascade), and how many versions load, serve or drain."""

    path: str
    model: ServedModel
    versions: Mapping[str, int]


@dataclass(slots=True)
class _Entry:
    """A model of the registry. A cascade has neither version nor marks."""

    spec: ModelSpec
    model: ServedModel
    version: Version | None = None
    marks: Hashable = None
    members: Sequence[ServedMember] = ()


def compare(
    registry: Registry, after: Registry, *, changed: Callable[[ModelSpec], bool]
) -> tuple[Changes, list[ModelSpec]]:
    """What makes a registry of another, and the entries that must be loaded for it: what is new, and what has other
    options or (`changed`) other files. Names change without loading anything, and so does a cascade.
    """
    before = {spec.name: spec for spec in registry.model}
    added = [spec for spec in after.model if spec.name not in before]
    kept = [spec for spec in after.model if spec.name in before]
    replaced = [spec for spec in kept if _loading(spec) != _loading(before[spec.name]) or changed(spec)]
    changes = Changes(
        added=tuple(spec.name for spec in added),
        replaced=tuple(spec.name for spec in replaced),
        changed=tuple(
            spec.name
            for spec in kept
            if spec not in replaced and _called(spec, after) != _called(before[spec.name], registry)
        ),
        removed=tuple(sorted(before.keys() - {spec.name for spec in after.model})),
        default=after.default_name,
    )
    needed = {*changes.added, *changes.replaced}
    return changes, [spec for spec in after.model if spec.name in needed and not spec.stages]


def _loading(spec: ModelSpec) -> ModelSpec:
    """The part of an entry that its version depends on."""
    return spec.model_copy(update={"aliases": (), "fallback": None, "passage_selector": None, "diversity_model": None})


def _called(spec: ModelSpec, registry: Registry) -> tuple[frozenset[str], str | None]:
    """The names under which requests reach a model, and what answers for it: no version depends on them."""
    return frozenset(registry.aliases_of(spec)), spec.fallback


class ModelHost:
    """Owns the versions that run. `drain_s`: how long requests may take on a version that was replaced."""

    def __init__(
        self,
        source: Source,
        registry: Registry,
        *,
        fallback: str | None,
        observer: Observer,
        tokenizing: SharedWorker,
        drain_s: float,
    ) -> None:
        self._source = source
        self._registry = registry
        self._fallback = fallback
        self._observer = observer
        self._tokenizing = tokenizing
        self._drain_s = drain_s
        self._changing = asyncio.Lock()
        self._versions: set[Version] = set()
        self._entries = {spec.name: _Entry(spec, self._model(registry, spec)) for spec in registry.model}
        self.catalog = Catalog(self._models(registry), default=registry.default_name, fallback=fallback)
        self._bind()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load every model; leaving the context stops all of them."""
        for entry in self._entries.values():
            if not entry.spec.stages:
                entry.marks = self._source.marks(entry.spec)
                entry.version = self._version(entry.spec, entry.model, at_once=True)
        try:
            yield
        finally:
            await asyncio.gather(*(version.close() for version in self._versions))

    async def reload(self) -> Changes:
        """Read the registry again, and serve what it says.

        Raises:
            ConfigError: nothing was changed; the message names every problem.
        """
        async with self._changing:
            registry = await asyncio.to_thread(self._source.registry)
            registry.check_fallback(self._fallback)
            marks = await asyncio.to_thread(self._marks, registry)
            changes, needed = compare(self._registry, registry, changed=partial(self._changed, marks))
            self._commit(registry, await self._open(registry, needed), marks)
            return changes

    async def load(self, name: str) -> None:
        """Load a model again from its files, whether it is loaded or not.

        Raises:
            ModelNotFound: no model is called that.
            InvalidRequest: it is a cascade.
            ConfigError: it cannot be loaded; if it served before, it still does.
        """
        async with self._changing:
            entry = self._entry(name)
            marks = await asyncio.to_thread(self._marks, self._registry)
            self._commit(self._registry, await self._open(self._registry, [entry.spec]), marks)

    async def unload(self, name: str) -> None:
        """Release a model's memory once its requests have ended. The next request loads it again.

        Raises:
            ModelNotFound: no model is called that.
            InvalidRequest: it is a cascade, or does not serve.
        """
        async with self._changing:
            entry = self._entry(name)
            if entry.version is None or entry.model.usage is None:
                raise InvalidRequest(f"model {entry.spec.name!r} is not loaded")
            entry.version.unload()

    def hosted(self, name: str) -> HostedModel:
        """What runs for a model.

        Raises:
            ModelNotFound: no model is called that.
        """
        entry = self._entries[self.catalog.named(name).name]
        states = [version.state for version in self._versions if version.model is entry.model]
        return HostedModel(entry.spec.path, entry.model, Counter(states))

    def _entry(self, name: str) -> _Entry:
        entry = self._entries[self.catalog.named(name).name]
        if entry.spec.stages:
            raise InvalidRequest(f"{entry.spec.name!r} is a cascade and has nothing to load; name one of its members")
        return entry

    def _model(self, registry: Registry, spec: ModelSpec) -> ServedModel:
        return ServedModel(
            name=spec.name,
            aliases=registry.aliases_of(spec),
            observer=self._observer,
            turned=self._follow,
            wanted=partial(self._wake, spec.name),
        )

    def _models(self, registry: Registry) -> list[ServedModel]:
        return [self._entries[spec.name].model for spec in registry.model]

    def _version(self, spec: ModelSpec, model: ServedModel, *, at_once: bool = False) -> Version:
        version = Version(
            model,
            self._source.opening(spec, wanted=model.status is Status.UNLOADED),
            self._source.release,
            drain_s=self._drain_s,
            idle_unload_s=spec.idle_unload_s,
            at_once=at_once,
        )
        self._versions.add(version)
        version.task.add_done_callback(lambda _: self._versions.discard(version))
        return version

    def _marks(self, registry: Registry) -> dict[str, Hashable]:
        return {spec.name: self._source.marks(spec) for spec in registry.model if not spec.stages}

    def _changed(self, marks: Mapping[str, Hashable], spec: ModelSpec) -> bool:
        return not spec.stages and marks[spec.name] != self._entries[spec.name].marks

    async def _open(self, registry: Registry, specs: Sequence[ModelSpec]) -> Mapping[str, Version]:
        """Load models beside what serves.

        Raises:
            ConfigError: one or more cannot serve; the message names all of them, and the others are released.
        """
        if not specs:
            return {}
        await asyncio.to_thread(self._source.expect, specs)
        fresh: dict[str, Version] = {}
        try:
            for spec in specs:
                known = self._entries.get(spec.name)
                fresh[spec.name] = self._version(spec, known.model if known else self._model(registry, spec))
            outcomes = await asyncio.gather(*(version.opened() for version in fresh.values()), return_exceptions=True)
            problems = [f"model {name}: {bad}" for name, bad in zip(fresh, outcomes, strict=True) if bad is not None]
            if problems:
                raise ConfigError("; ".join(problems))
        except BaseException:
            for name, version in fresh.items():
                version.retire()
                if name not in self._entries:
                    version.model.remove()
            raise
        return fresh

    def _commit(self, registry: Registry, fresh: Mapping[str, Version], marks: Mapping[str, Hashable]) -> None:
        """Change what is served. There is no `await` here, so that no request sees half of it."""
        before, self._entries, self._registry = self._entries, {}, registry
        for spec in registry.model:
            old, version = before.pop(spec.name, None), fresh.get(spec.name)
            model = version.model if version else old.model if old else self._model(registry, spec)
            model.aliases = registry.aliases_of(spec)
            if old and old.version and (version or spec.stages):
                old.version.retire()
            kept = old.version if old and not spec.stages else None
            self._entries[spec.name] = _Entry(spec, model, version or kept, marks.get(spec.name))
            if version:
                version.serve()
        for gone in before.values():
            gone.model.remove()
            if gone.version:
                gone.version.retire()
        self._bind()
        self.catalog.replace(self._models(registry), default=registry.default_name, fallback=self._fallback)
        self._retry_failed()

    def _bind(self) -> None:
        """Look up again what entries name: an alias may mean another model now."""
        served = {
            name: entry.model for entry in self._entries.values() for name in (entry.model.name, *entry.model.aliases)
        }
        for entry in self._entries.values():
            entry.model.fallback = served[entry.spec.fallback] if entry.spec.fallback else None
            selector = entry.spec.passage_selector
            entry.model.passage_selector = served[selector] if selector else None
            embedder = entry.spec.diversity_model
            entry.model.diversity_model = served[embedder] if embedder else None
            entry.members = [ServedMember(step.model, served[step.model], step.depth) for step in entry.spec.cascade]
        self._follow()

    def _follow(self) -> None:
        for entry in self._entries.values():
            if entry.members:
                follow(
                    entry.model,
                    entry.members,
                    self._tokenizing,
                    fusion=entry.spec.fusion,
                    diversity=entry.spec.diversity,
                )

    def _retry_failed(self) -> None:
        """Try models again that could not be loaded when their entries were read first."""
        for entry in self._entries.values():
            lost = entry.version is not None and not entry.version.alive
            if lost and entry.model.status is Status.FAILED:
                entry.version = self._version(entry.spec, entry.model, at_once=True)

    def _wake(self, name: str) -> None:
        """Load a model that is unloaded, once for all requests that wait for it."""
        entry = self._entries[name]
        if entry.version is None or not entry.version.alive:
            entry.version = self._version(entry.spec, entry.model, at_once=True)
