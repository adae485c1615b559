"""Finds all that is wrong with a configuration, without serving it: `rerankd serve --check` and `rerankd models`."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from app.api_keys import read_api_keys
from app.assembly import load_parts, model_folder
from app.cache import connect_cache
from app.config import ModelSpec, Registry, Settings, default_settings, read_registry
from app.engines import check_engine
from app.errors import ConfigError
from app.scorers import check_scorer
from app.sources import check_hub_name, is_on_hub

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model of the registry and what is wrong with it."""

    spec: ModelSpec
    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class Checked:
    """`registry` None: it could not be read. `problems` are those of no single model."""

    registry: Registry | None
    models: Sequence[CheckedModel]
    keys: int
    problems: Sequence[str]

    @property
    def all_problems(self) -> list[str]:
        of_models = [f"model {model.spec.name}: {problem}" for model in self.models for problem in model.problems]
        return [*self.problems, *of_models]


def check_beside(problem: ConfigError, registry: Path | None) -> Checked:
    """Check the registry although the settings cannot be used, so that all is told at once."""
    checked = check_settings(default_settings(registry))
    return replace(checked, problems=[str(problem), *checked.problems])


def check_settings(settings: Settings, *, load: bool = False) -> Checked:
    """Check the registry with every model's folder, options and runtime, the cache URL and the API keys.

    With `load` each model is also fetched and loaded, one after the other: seconds or minutes each.
    """
    problems: list[str] = []
    registry = _tried(problems, lambda: read_registry(settings.registry))
    keys = _tried(problems, lambda: read_api_keys(settings.api_keys, settings.api_keys_file))
    _tried(problems, lambda: asyncio.run(_check_cache(settings)))
    models = [check_model(spec, settings, load=load) for spec in (registry.model if registry else ())]
    return Checked(registry=registry, models=models, keys=len(keys or ()), problems=problems)


def check_model(spec: ModelSpec, settings: Settings, *, load: bool = False) -> CheckedModel:
    """Check one entry of the registry. A cascade has no files of its own."""
    problems: list[str] = []
    if spec.path:
        _tried(problems, lambda: check_scorer(spec.scorer, spec.options))
        _tried(problems, lambda: check_engine(spec.engine, spec.engine_options, devices=spec.devices))
        _tried(problems, lambda: _check_place(spec, settings))
        if load and not problems:
            _tried(problems, lambda: load_parts(spec, settings))
    return CheckedModel(spec, problems)


def _check_place(spec: ModelSpec, settings: Settings) -> None:
    """A repository is only asked for where that costs no download."""
    if is_on_hub(spec.path) and not settings.hub_offline:
        check_hub_name(spec.path)
    else:
        model_folder(spec, settings)


async def _check_cache(settings: Settings) -> None:
    secret = settings.cache_secret
    cache = await connect_cache(
        settings.cache_url.get_secret_value(), secret=secret.get_secret_value() if secret else None
    )
    if cache is not None:
        await cache.close()


def _tried(problems: list[str], check: Callable[[], T]) -> T | None:
    try:
        return check()
    except ConfigError as error:
        problems.append(str(error))
        return None
