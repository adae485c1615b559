"""The models that a command line or RERANKD_MODEL names, as a registry."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from rerankd.config.options import explain
from rerankd.config.registry import AUTO, ModelSpec, Registry, read_registry
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError

_HUB: Final = "hub:"
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PATH: Final = re.compile(r"[./~]|\w:\\")


def served_registry(settings: Settings) -> Registry:
    """The models that settings name, or else those of the registry.

    Raises:
        ConfigError: a name is none of a model, or the registry is unusable.
    """
    if not settings.model:
        return read_registry(settings.registry)
    paths = [_path(model) for model in settings.model]
    names = settings.model_name or _names(paths)
    if len(names) != len(paths):
        raise ConfigError(f"{len(paths)} models and {len(names)} names for them; give each model one name, or none")
    try:
        return Registry(
            model=tuple(named_model(path, settings, name=name) for path, name in zip(paths, names, strict=True))
        )
    except ValidationError as error:
        raise ConfigError(f"the models {', '.join(settings.model)}: {explain(error, Registry)}") from None


def named_model(model: str, settings: Settings, *, name: str | None = None) -> ModelSpec:
    """A registry entry for a folder, or for a name on the hub, of which all else is chosen.

    Raises:
        ConfigError: it is neither.
    """
    path = _path(model)
    options: dict[str, Any] = {"template": settings.model_template} if settings.model_template else {}
    wanted = {"device": settings.model_device, "precision": settings.model_dtype}
    return ModelSpec(
        name=name or _names([path])[0],
        path=path,
        scorer=AUTO,
        engine=AUTO,
        options=options,
        certify=settings.model_certify,
        idle_unload_s=settings.model_idle_unload_s,
        engine_options={key: value for key, value in wanted.items() if value is not None},
    )


def _path(model: str) -> str:
    """What a registry says for a folder or a repository; a folder wins over a repository of the same name."""
    if model.startswith(_HUB):
        return model
    folder = Path(model).expanduser()
    if folder.exists() or _PATH.match(model):
        return str(folder.resolve())
    if _REPOSITORY.fullmatch(model):
        return f"{_HUB}{model}"
    raise ConfigError(f"{model!r} is neither a folder nor a name on the hub; write a path, or org/name")


def _names(paths: list[str]) -> list[str]:
    """The last part of each path, or the whole repository's name where several end alike."""
    wholes = [path.removeprefix(_HUB).partition("@")[0] if path.startswith(_HUB) else Path(path).name for path in paths]
    lasts = [re.sub(r"\s+", "-", whole.rpartition("/")[2]) for whole in wholes]
    counts = Counter(lasts)
    return [last if counts[last] == 1 else whole for last, whole in zip(lasts, wholes, strict=True)]
