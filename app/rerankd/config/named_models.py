"""The models that a command line or RERANKD_MODEL names, as a registry."""

import json
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
_ADAPTER: Final = "adapter_config.json"
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
    path, adapter = _with_base(_path(model), settings)
    options: dict[str, Any] = {"template": settings.model_template} if settings.model_template else {}
    wanted = {"device": settings.model_device, "precision": settings.model_dtype}
    return ModelSpec(
        name=name or _names([_path(model)])[0],
        path=path,
        adapter=adapter,
        adapter_of=settings.model_adapter_of or "",
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


def _with_base(path: str, settings: Settings) -> tuple[str, str]:
    """A model and its adapter, "" for none. For the folder of an adapter alone, the model that it names.

    Raises:
        ConfigError: that model is neither a folder nor on the hub, or there are two adapters.
    """
    config = Path(path) / _ADAPTER
    if path.startswith(_HUB) or not config.is_file() or (Path(path) / "config.json").is_file():
        return path, _path(settings.model_adapter) if settings.model_adapter else ""
    if settings.model_adapter:
        raise ConfigError(f"{path} is an adapter itself; name the model, and one adapter for it")
    try:
        base = str(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{config} cannot be read: {error}; save the adapter again") from None
    beside = Path(path).parent / base
    if base and beside.is_dir():
        return str(beside.resolve()), path
    if _REPOSITORY.fullmatch(base):
        return f"{_HUB}{base}", path
    raise ConfigError(
        f"{path} is an adapter of {base!r}, which is neither a folder here nor a name on the hub; name its model: "
        f"rerankd serve MODEL --adapter {path}"
    )


def _names(paths: list[str]) -> list[str]:
    """The last part of each path, or the whole repository's name where several end alike."""
    wholes = [path.removeprefix(_HUB).partition("@")[0] if path.startswith(_HUB) else Path(path).name for path in paths]
    lasts = [re.sub(r"\s+", "-", whole.rpartition("/")[2]) for whole in wholes]
    counts = Counter(lasts)
    return [last if counts[last] == 1 else whole for last, whole in zip(lasts, wholes, strict=True)]
