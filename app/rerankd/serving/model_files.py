"""Finds what a registry entry is loaded from: its folder or repository, its small files, and prompt templates."""

from pathlib import Path

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.errors import SourceUnreachable
from rerankd.recognition.kinds import ModelFiles
from rerankd.serving.sources import (
    Hub,
    allowed_files,
    configuration_files,
    content_hash,
    find_folder,
    is_on_hub,
    repository_files,
    repository_name,
)


def model_content(spec: ModelSpec, folder: Path) -> str:
    """A hash over the files that a registry entry is loaded from."""
    return content_hash(folder, patterns=_patterns(spec))


def template_folders(settings: Settings) -> tuple[Path, ...]:
    """Where prompt templates lie: beside the registry, then the shipped ones."""
    return tuple(path.parent / "templates" for path in (settings.registry, SHIPPED_REGISTRY))


def model_folder(spec: ModelSpec, settings: Settings, *, beside: Path | None = None) -> Path:
    """The local folder of a registry entry, downloaded if it names a repository.

    Raises:
        ConfigError: see `rerankd.serving.sources.find_folder`.
    """
    beside = beside or settings.registry.parent
    return find_folder(spec.path, beside=beside, hub=hub_of(settings), patterns=_patterns(spec))


def read_model_files(spec: ModelSpec, settings: Settings) -> ModelFiles:
    """The small files of a model, fetched if it is on a hub, with the names of all others.

    Raises:
        ConfigError: there is no such model, or a file of it is unusable.
        SourceUnreachable: the hub cannot be reached, and nothing was downloaded before.
    """
    hub = hub_of(settings)
    if not is_on_hub(spec.path):
        return ModelFiles.read(find_folder(spec.path, beside=settings.registry.parent, hub=hub, patterns=()))
    folder = find_folder(spec.path, beside=settings.registry.parent, hub=hub, patterns=configuration_files())
    try:
        names = repository_files(spec.path, hub=hub)
    except SourceUnreachable:
        # It was downloaded before, or its folder would not have been found.
        names = frozenset()
    return ModelFiles.read(folder, names=names, repository=repository_name(spec.path))


def hub_of(settings: Settings) -> Hub:
    token = settings.hub_token
    return Hub(
        token=token.get_secret_value() if token else None, offline=settings.hub_offline, cache=settings.hub_cache
    )


def _patterns(spec: ModelSpec) -> list[str]:
    file = spec.engine_options.get("file")
    return allowed_files(spec.engine, file=file if isinstance(file, str) else None, remote_code=spec.trust_remote_code)
