"""Finds all problems of a configuration without serving it, for `rerankd serve --check` and `rerankd models`."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from rerankd.config.named_models import served_registry
from rerankd.config.registry import ModelSpec, Registry
from rerankd.config.settings import Settings
from rerankd.engines import check_engine
from rerankd.errors import ConfigError
from rerankd.gateway.administration import read_keys
from rerankd.gateway.running import counting
from rerankd.scorers import check_scorer
from rerankd.serving.assembly import cache_of, check_cutting, check_parts, load_parts
from rerankd.serving.choosing import choose, is_open
from rerankd.serving.model_files import model_folder
from rerankd.serving.sources import check_hub_name, is_on_hub
from rerankd.telemetry.observer import Silent

T = TypeVar("T")


class Extent(StrEnum):
    """How far a model without problems was checked."""

    LOADED = "yes"
    NOT_LOADED = "not loaded"
    NOT_FETCHED = "not fetched"


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model of the registry and its problems."""

    spec: ModelSpec
    problems: Sequence[str]
    extent: Extent


@dataclass(frozen=True, slots=True)
class Checked:
    """`registry` is None if it could not be read. `problems` are those that belong to no single model."""

    registry: Registry | None
    models: Sequence[CheckedModel]
    keys: int
    problems: Sequence[str]

    @property
    def default(self) -> str:
        """The name of the default model; empty if there is none."""
        return "" if self.registry is None else self.registry.only([None]).default or ""

    @property
    def all_problems(self) -> list[str]:
        of_models = [f"model {model.spec.name}: {problem}" for model in self.models for problem in model.problems]
        return [*self.problems, *of_models]


def check_settings(settings: Settings, *, known: Sequence[str] = (), load: bool = False) -> Checked:
    """Check the registry with every model's folder, options and runtime, the cache URL and the API keys. `known` are
    problems of the settings, so that all are reported at once.

    With `load`, also fetch and load each model, one after the other. This takes seconds or minutes per model.
    """
    problems = list(known)
    registry = _tried(problems, lambda: served_registry(settings))
    if registry is not None:
        _tried(problems, lambda: registry.check_fallback(settings.model_fallback))
    keys = _tried(problems, lambda: read_keys(settings))
    _tried(problems, lambda: asyncio.run(_check_cache(settings)))
    models = [check_model(spec, settings, load=load) for spec in (registry.model if registry else ())]
    if registry is not None:
        models = [_with_its_members(model, models, registry) for model in models]
    return Checked(registry=registry, models=models, keys=len(keys[0]) if keys else 0, problems=problems)


def check_model(spec: ModelSpec, settings: Settings, *, load: bool = False) -> CheckedModel:
    """Check one entry of the registry. A cascade has no files."""
    extent = Extent.LOADED if load else Extent.NOT_LOADED
    problems: list[str] = []
    if not spec.stages:
        chosen = _tried(problems, lambda: _chosen(spec, settings, fetch=load))
        if chosen is None:
            return CheckedModel(spec, problems, Extent.NOT_FETCHED)
        spec = chosen
        _tried(problems, lambda: check_scorer(spec.scorer, spec.options))
        _tried(problems, lambda: _check_engine(spec))
        _tried(problems, lambda: check_cutting(spec))
        folder = _tried(problems, lambda: _find_folder(spec, settings, fetch=load and not problems))
        if not problems and load:
            _tried(problems, lambda: load_parts(spec, settings))
        elif not problems and folder is not None:
            _tried(problems, lambda: check_parts(spec, folder, settings))
        elif folder is None:
            extent = Extent.NOT_FETCHED
    return CheckedModel(spec, problems, extent)


def _chosen(spec: ModelSpec, settings: Settings, *, fetch: bool) -> ModelSpec | None:
    """The entry with its open fields filled in; None if that would take a download."""
    if is_open(spec) and _is_away(spec, settings, fetch=fetch):
        return None
    return choose(spec, settings)


def _check_engine(spec: ModelSpec) -> None:
    check_engine(spec.engine, spec.engine_options, devices=spec.devices, trust_remote_code=spec.trust_remote_code)


def _find_folder(spec: ModelSpec, settings: Settings, *, fetch: bool) -> Path | None:
    """The model's folder; None if it is in a repository and not downloaded yet."""
    return None if _is_away(spec, settings, fetch=fetch) else model_folder(spec, settings)


def _is_away(spec: ModelSpec, settings: Settings, *, fetch: bool) -> bool:
    """Whether a model is in a repository and not checked.

    Raises:
        ConfigError: this is not the name of a repository.
    """
    if not is_on_hub(spec.path) or settings.hub_offline or fetch:
        return False
    check_hub_name(spec.path)
    return True


def _with_its_members(model: CheckedModel, models: Sequence[CheckedModel], registry: Registry) -> CheckedModel:
    """Give a cascade the state of its worst member."""
    steps = {step.model for step in model.spec.cascade}
    members = [one for one in models if steps & {one.spec.name, *registry.aliases_of(one.spec)}]
    broken = [f"its member {one.spec.name} cannot be used" for one in members if one.problems]
    extents = [one.extent for one in (*members, model)]
    return replace(model, problems=[*model.problems, *broken], extent=max(extents, key=list(Extent).index))


async def _check_cache(settings: Settings) -> None:
    cache = await cache_of(settings, Silent())
    if cache is not None:
        await cache.close()
    async with counting(settings, Silent()):
        pass


def _tried(problems: list[str], check: Callable[[], T]) -> T | None:
    try:
        return check()
    except ConfigError as error:
        problems.append(str(error))
        return None
