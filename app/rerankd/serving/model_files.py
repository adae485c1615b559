"""Finds what a registry entry is loaded from: its folder or repository, its small files, and prompt templates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.errors import ConfigError, SourceUnreachable
from rerankd.recognition.adapters import ADAPTER_CONFIG, ADAPTER_FILES, Adapter
from rerankd.recognition.files import read_json
from rerankd.recognition.kinds import ModelFiles, repository_of
from rerankd.scorers.calibration import CALIBRATION_FILE
from rerankd.serving.sources import (
    Hub,
    allowed_files,
    check_hub_name,
    configuration_files,
    content_hash,
    find_folder,
    is_on_hub,
    matching_files,
    repository_files,
    repository_name,
)

NO_CALIBRATION: Final = "none"


@dataclass(frozen=True, slots=True)
class FileMark:
    """What differs once a file has been written or replaced."""

    path: str
    size: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "FileMark":
        """The mark of a file that is there."""
        found = path.stat()
        return cls(str(path), found.st_size, found.st_mtime_ns, found.st_ino)


def model_content(spec: ModelSpec, folder: Path) -> str:
    """A hash over the files that change a registry entry's raw scores; empty for a remote model."""
    if not spec.path:
        return ""
    return content_hash(folder, patterns=_patterns(spec), without=[CALIBRATION_FILE])


def calibration_file(spec: ModelSpec, folder: Path | None, settings: Settings) -> Path | None:
    """The calibration that an entry names, or the one in its folder; None if there is none. `folder` None: it has no
    folder here.
    """
    if spec.calibration == NO_CALIBRATION:
        return None
    if spec.calibration:
        return settings.registry.parent / Path(spec.calibration).expanduser()
    beside = folder / CALIBRATION_FILE if folder else None
    return beside if beside and beside.is_file() else None


def anchor_file(spec: ModelSpec, settings: Settings) -> Path | None:
    """The anchors that an entry names; None if there are none."""
    return settings.registry.parent / Path(spec.anchors.file).expanduser() if spec.anchors.file else None


def adapter_content(adapter: Path | None) -> str:
    """A hash over an adapter's files; "" for none."""
    return "" if adapter is None else content_hash(adapter, patterns=ADAPTER_FILES)


def adapter_folder(spec: ModelSpec, settings: Settings) -> Path | None:
    """The local folder of an entry's adapter, downloaded if it names a repository; None if it has none.

    Raises:
        ConfigError: there is no such folder, or the adapter is one of another model.
    """
    if not spec.adapter:
        return None
    folder = find_folder(spec.adapter, beside=settings.registry.parent, hub=hub_of(settings), patterns=ADAPTER_FILES)
    Adapter.read(folder).check_base(spec.path, said=spec.adapter_of)
    return folder


def adapter_repository(spec: ModelSpec) -> str:
    """The hub's name of an entry's adapter; empty where nothing says it."""
    return repository_name(spec.adapter) if is_on_hub(spec.adapter) else repository_of(Path(spec.adapter))


def with_base(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """The entry of a model; of a repository that holds an adapter alone, the model that it names, with it.

    Raises:
        ConfigError: there is no such repository, or what it names is not on the hub.
        SourceUnreachable: the hub cannot be reached now.
    """
    if spec.adapter or not is_on_hub(spec.path):
        return spec
    hub, beside = hub_of(settings), settings.registry.parent
    folder = find_folder(spec.path, beside=beside, hub=hub, patterns=configuration_files())
    if (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return spec
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    try:
        path = f"hub:{base}"
        check_hub_name(path)
    except ConfigError:
        raise ConfigError(
            f"{spec.path} is an adapter of {base!r}, which is not a name on the hub; set `path` to its model and "
            f"`adapter` to {spec.path!r}"
        ) from None
    return spec.model_copy(update={"path": path, "adapter": spec.path})


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


def file_marks(spec: ModelSpec, settings: Settings) -> tuple[FileMark, ...]:
    """The local files that an entry is loaded from, without reading them. None for a folder that cannot be read, and
    for a model on a hub.
    """
    beside = settings.registry.parent
    adapter = spec.adapter and not is_on_hub(spec.adapter)
    changes = [(beside / Path(spec.adapter).expanduser()) / name for name in ADAPTER_FILES] if adapter else []
    if calibration := calibration_file(spec, None, settings):
        changes.append(calibration)
    if anchors := anchor_file(spec, settings):
        changes.append(anchors)
    if is_on_hub(spec.path):
        return tuple(FileMark.of(path) for path in changes if path.is_file())
    template = spec.options.get("template")
    prompts = [folder / f"{template}.toml" for folder in template_folders(settings)] if template else []
    key = spec.engine_options.get("api_key_file")
    keys = [Path(key)] if isinstance(key, str) else []
    try:
        files = matching_files((beside / Path(spec.path).expanduser()).resolve(), patterns=_patterns(spec))
        read = (*(files if spec.path else ()), *prompts, *keys, *changes)
        return tuple(FileMark.of(path) for path in read if path.is_file())
    except (OSError, RuntimeError):  # a file that goes meanwhile, a home that nobody has
        return ()


def weight_bytes(spec: ModelSpec, settings: Settings) -> int:
    """About what a model's weights take in memory: the size of its local files. 0 for one on a hub."""
    return sum(mark.size for mark in file_marks(spec, settings))


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
