"""Finds a model's folder: a local one, or one that is downloaded from a Hugging Face hub.

`hub:org/name` or `hub:org/name@revision`. Only the files that a model needs are fetched, and never a pickle:
the patterns below name what is allowed, everything else stays there.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Final

from rerankd.config.proxies import check_proxies
from rerankd.errors import ConfigError, SourceUnreachable
from rerankd.serving.downloads import DownloadProgress
from rerankd.telemetry.redaction import redacted

logger = logging.getLogger(__name__)

_HUB: Final = "hub:"
_HUB_NAME: Final = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_CONFIGURATION: Final = ("*.json", "*.txt", "*.model", "*.jinja", "artifact.metadata")
# Repositories offer the same graph in many precisions: without a choice, only those that the engine looks for.
_WEIGHTS: Final = {
    "onnx": ("model.int8.onnx*", "model.float16.onnx*", "model.onnx*", "onnx/model.onnx*", "model.int8-weights.onnx*"),
    "openvino": ("model.int8.onnx*", "model.onnx*", "onnx/model.onnx*", "model.int8-weights.onnx*"),
    "torch-encoder": ("*.safetensors",),
    "torch-vectors": ("*.safetensors",),
    "torch-causal": ("*.safetensors",),
    "torch-seq2seq": ("*.safetensors",),
    "torch-generate": ("*.safetensors",),
    "endpoint": (),
    "remote": (),
}
_CODE: Final = ("*.py",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """How to talk to the hub. `endpoint` None: the public one, or what HF_ENDPOINT says."""

    token: str | None = None
    offline: bool = False
    cache: Path | None = None
    endpoint: str | None = None


def configuration_files() -> list[str]:
    """The patterns of the files that say what a model is."""
    return list(_CONFIGURATION)


def allowed_files(engine: str, *, file: str | None, remote_code: bool) -> list[str]:
    """The patterns of the files that a model needs; `file` narrows the weights down to one graph and its data."""
    weights: Sequence[str] = _WEIGHTS.get(engine, ("*.safetensors", "*.onnx*"))
    if file is not None:
        weights = (f"{file}*",)
    return [*_CONFIGURATION, *weights, *(_CODE if remote_code else ())]


def find_folder(path: str, *, beside: Path, hub: Hub, patterns: Sequence[str]) -> Path:
    """The local folder of a model; `beside` is the folder that relative paths start from.

    Raises:
        ConfigError: no such folder or repository, or no access to it.
        SourceUnreachable: the hub cannot be reached now.
    """
    if path.startswith(_HUB):
        return _download(path.removeprefix(_HUB), hub=hub, patterns=patterns)
    folder = (beside / Path(path).expanduser()).resolve()
    if folder.suffix == ".gguf" and folder.is_file():
        raise ConfigError(
            f"{folder} is a GGUF file: convert it with `rerankd import {folder} FOLDER`, then serve FOLDER"
        )
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; `path` names the model's folder: {folder.parent}?")
    if not folder.is_dir():
        raise ConfigError(f"no model folder {folder}; correct the path, or use hub:org/name")
    return folder


def is_on_hub(path: str) -> bool:
    return path.startswith(_HUB)


def repository_name(path: str) -> str:
    """`org/name` of `hub:org/name@revision`.

    Raises:
        ConfigError: the name is not that of a repository.
    """
    return _read_name(path.removeprefix(_HUB))["repository"]


def check_hub_name(path: str) -> None:
    """Check how a repository is named; nothing is asked.

    Raises:
        ConfigError: the name is not that of a repository.
    """
    _read_name(path.removeprefix(_HUB))


def content_hash(folder: Path, *, patterns: Sequence[str], without: Sequence[str] = ()) -> str:
    """A hash over the folder's files that match, apart from some: two replicas with the same files agree, changed
    weights do not.
    """
    total = blake2b(digest_size=16)
    for path in matching_files(folder, patterns=patterns):
        if path.name in without:
            continue
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder).as_posix()}:{file_digest(file, blake2b).hexdigest()};".encode())
    return total.hexdigest()


def matching_files(folder: Path, *, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder and its subfolders that match one of the patterns, sorted."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)
    ]


def _read_name(name: str) -> re.Match[str]:
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{_HUB}{name} is not the name of a repository; write hub:org/name or hub:org/name@revision")
    return match


def repository_files(path: str, *, hub: Hub) -> frozenset[str]:
    """The names of all files of a repository, whether they were downloaded or not; empty where only downloaded ones may
    be used.

    Raises:
        ConfigError: no such repository, or no access to it.
        SourceUnreachable: the hub cannot be reached now.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - a third of a second that local models need not wait for

    name = path.removeprefix(_HUB)
    match = _read_name(name)
    if hub.offline:
        return frozenset()
    check_proxies()
    with _explained(name, match, hub):
        client = HfApi(endpoint=hub.endpoint, token=hub.token)
        return frozenset(client.list_repo_files(match["repository"], revision=match["revision"]))


def _download(name: str, *, hub: Hub, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - as above

    match = _read_name(name)
    logger.info("looking for model %s %s", name, "among the downloaded ones" if hub.offline else "on the hub")
    if not hub.offline:
        check_proxies()
    progress = DownloadProgress(name)
    with _explained(name, match, hub):
        folder = Path(
            snapshot_download(
                match["repository"],
                revision=match["revision"],
                allow_patterns=list(patterns),
                token=hub.token,
                local_files_only=hub.offline,
                cache_dir=hub.cache,
                endpoint=hub.endpoint,
                tqdm_class=progress.bar_class(),
            )
        )
    progress.finish()
    return folder


@contextmanager
def _explained(name: str, match: re.Match[str], hub: Hub) -> Iterator[None]:
    """What the hub's client raises, in our words."""
    from huggingface_hub.errors import (  # noqa: PLC0415 - as above
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{_HUB}{name} is not a repository: {error}") from None
    except GatedRepoError:
        raise ConfigError(f"{name} is gated: accept its terms on the hub, then set RERANKD_HUB_TOKEN") from None
    except RepositoryNotFoundError:
        raise ConfigError(f"no repository {name} on the hub, or it is private: set RERANKD_HUB_TOKEN") from None
    except RevisionNotFoundError:
        raise ConfigError(
            f"{match['repository']} has no revision {match['revision']!r}; name a branch, a tag or a commit"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if hub.offline:
            raise SourceUnreachable(
                f"{name} was not downloaded before; unset RERANKD_HUB_OFFLINE to fetch it"
            ) from None
        raise SourceUnreachable(
            f"{name} was not downloaded before and the hub cannot be asked "
            f"({redacted(str(error.__cause__ or error))}); "
            "is there a network? Is the endpoint right?"
        ) from error
    except Exception as error:
        # the client has changed its HTTP library, and with it these errors, more than once
        raise SourceUnreachable(f"cannot fetch {name} from the hub: {redacted(str(error))}") from error
