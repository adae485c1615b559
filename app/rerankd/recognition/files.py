"""Reads a model folder's files, and explains what is wrong with an unreadable one and how to fix it.

Folders are copied without `git lfs`, downloads are interrupted, files are overwritten. The errors of libraries name
neither the file nor the cause.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rerankd.errors import ConfigError

# The text of about 130 bytes that Git LFS leaves in place of a large file.
_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"


def refuse_hollow(path: Path) -> None:
    """Refuse an empty file, and a Git LFS pointer.

    Raises:
        ConfigError: it is a Git LFS pointer, or empty.
    """
    with path.open("rb") as file:
        beginning = file.read(len(_LFS_POINTER))
    if beginning == _LFS_POINTER:
        raise ConfigError(
            f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` in that folder, or download "
            "the model again"
        )
    if not beginning:
        raise ConfigError(f"{path} is empty; download or copy it again")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: the file is missing or is no JSON object.
    """
    try:
        refuse_hollow(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; is this a Hugging Face model folder?") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}; download or save it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object; download or save it again")
    return content


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist.

    Raises:
        ConfigError: the file is no JSON object.
    """
    return read_json(path) if path.is_file() else {}


def read_json_list(path: Path) -> list[Mapping[str, Any]]:
    """Read a JSON list of objects.

    Raises:
        ConfigError: the file is missing or is no such list.
    """
    try:
        refuse_hollow(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}; download or save it again") from None
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ConfigError(f"{path} is not a JSON list of objects; download or save it again")
    return content


def table_of(content: Mapping[str, Any], key: str, *, of: Path | str) -> Mapping[str, Any]:
    """An object in a JSON object; empty if missing or null.

    Raises:
        ConfigError: it is something else.
    """
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{of}: {key} is {_shown(value)}; it must be an object")
    return value


def texts_of(content: Mapping[str, Any], key: str, *, of: Path | str) -> list[str]:
    """A list of texts in a JSON object; empty if missing or null.

    Raises:
        ConfigError: it is something else.
    """
    value = content.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{of}: {key} is {_shown(value)}; it must be a list of texts")
    return value


def number_of(content: Mapping[str, Any], key: str, *, of: Path | str) -> int | None:
    """A whole number in a JSON object; None if missing or null.

    Raises:
        ConfigError: it is something else.
    """
    value = content.get(key)
    # Tokenizer configs write "no limit" as a number like 1e30.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"{of}: {key} is {_shown(value)}; it must be a whole number")
    return value


def _shown(value: object) -> str:
    return f"{json.dumps(value, ensure_ascii=False):.60}"
