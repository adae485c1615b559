"""Checks a command's output files before its work begins, so that hours of work are not lost to a missing folder."""

import errno
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from rerankd.errors import ConfigError


def check_files(outputs: Mapping[str, Path | None], *, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse files that cannot be written, and files that two options name. No file is changed. `outputs` maps the
    names of options to paths.

    Raises:
        ConfigError: the first one that cannot be used.
    """
    taken = {_identity(path): f"the input {path}" for path in inputs if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        _check_file(name, path)
        other = taken.get(_identity(path))
        if other is not None:
            raise ConfigError(f"{name} {path} is also {other}; name another file")
        taken[_identity(path)] = name


def check_folder(name: str, folder: Path) -> None:
    """Refuse a folder that cannot be created or written to. Nothing is changed.

    Raises:
        ConfigError: as above.
    """
    existing = next(place for place in [folder, *folder.absolute().parents] if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except NotADirectoryError:
        raise ConfigError(f"{name} {folder}: {existing} is not a folder") from None
    except OSError as error:
        raise ConfigError(f"{name} {folder}: cannot write in {existing} ({error.strerror})") from None


def explain_os_error(error: OSError) -> str:
    """One line about what stopped a running command."""
    what = error.strerror or str(error)
    place = f"{error.filename}: " if error.filename else ""
    way_out = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{place}{what}{way_out}"


def _check_file(name: str, path: Path) -> None:
    folder = path.parent
    if str(path) == "-":
        raise ConfigError(f"{name} -: standard output cannot be read again by a resumed command; name a file")
    if path.is_dir():
        raise ConfigError(f"{name} {path} is a folder; name a file in it")
    if not folder.exists():
        raise ConfigError(f"{name} {path}: there is no folder {folder}; make it first: mkdir -p {folder}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{name} {path} is not a regular file; a resumed command has to read it again")
    is_new = not path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(f"{name}: cannot write {path} ({error.strerror})") from None
    if is_new:
        with suppress(OSError):
            path.unlink()


def _identity(path: Path) -> Path:
    return path.resolve()
