"""API keys, as the operator gives them: some in a variable, others in a file with a name and limits each.

Whatever would protect nothing, or protect less than it seems to, is refused: an empty list, a key that no client can
send, one that is there twice. No message holds a key.
"""

import logging
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from rerankd.config.options import explain, read_toml
from rerankd.errors import ConfigError

logger = logging.getLogger(__name__)

Scope: TypeAlias = Literal["rerank", "metrics", "admin"]
# What a key may do that says nothing of it.
_USUAL_SCOPES: Final[tuple[Scope, ...]] = ("rerank", "metrics")
_VARIABLE: Final = "RERANKD_API_KEYS"
_QUOTES: Final = "\"'"
_DIGEST: Final = re.compile("[0-9a-f]{64}")
# What `sha256sum` says of an empty variable, and of one with `echo`.
_HASHES_OF_NOTHING: Final = frozenset(sha256(nothing).hexdigest() for nothing in (b"", b"\n"))


def hash_key(key: str) -> str:
    """What is kept of a key: the hash of its bytes in UTF-8, or as they were in the environment."""
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """Whose key it is, its hash, and its limits; None: without limit. Only the hash of a key is kept."""

    name: str
    sha256: str
    requests_per_s: float | None = None
    tokens_per_min: int | None = None
    scopes: frozenset[Scope] = frozenset(_USUAL_SCOPES)


class _KeyTable(BaseModel):
    """One `[[key]]` table of the file of API keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=100)
    key: str | None = None
    sha256: str | None = None
    requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tokens_per_min: int | None = Field(default=None, gt=0)
    scopes: tuple[Scope, ...] = Field(default=_USUAL_SCOPES, min_length=1)

    @field_validator("name")
    @classmethod
    def _is_printable(cls, value: str) -> str:
        if not value.isprintable() or value != value.strip():
            raise ValueError("must not have control characters, or spaces at its ends")
        return value

    @field_validator("key")
    @classmethod
    def _can_be_sent(cls, value: str | None) -> str | None:
        if value is None:
            return None
        key = value.strip()
        if problem := _unusable(key):
            raise ValueError(problem)
        return key

    @field_validator("sha256")
    @classmethod
    def _is_the_hash_of_a_key(cls, value: str | None) -> str | None:
        if value is None:
            return None
        digest = value.lower()
        if not _DIGEST.fullmatch(digest):
            raise ValueError("must be 64 hexadecimal digits, as `printf %s KEY | sha256sum` writes them")
        if digest in _HASHES_OF_NOTHING:
            raise ValueError("is the hash of an empty text: the key was not set where it was made")
        return digest

    @model_validator(mode="after")
    def _has_either(self) -> "_KeyTable":
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("must have either key or sha256")
        return self

    def as_key(self) -> ApiKey:
        return ApiKey(
            name=self.name,
            sha256=self.sha256 or hash_key(self.key or ""),
            requests_per_s=self.requests_per_s,
            tokens_per_min=self.tokens_per_min,
            scopes=frozenset(self.scopes),
        )


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    key: tuple[_KeyTable, ...] = Field(min_length=1)


def read_api_keys(variable: Sequence[SecretStr], file: Path | None) -> list[ApiKey]:
    """The keys of the variable, with the names key-1, key-2 and so on, and those of the file.

    Raises:
        ConfigError: the file is missing or unusable, or a key is; the message never holds a key.
    """
    keys = [_key_of_variable(number, key.get_secret_value()) for number, key in enumerate(variable, start=1)]
    places = [f"key {number} of {_VARIABLE}" for number in range(1, len(keys) + 1)]
    if file is not None:
        of_file = _read_file(file)
        keys += of_file
        places += [f"key {number} of {file} ({key.name!r})" for number, key in enumerate(of_file, start=1)]
    _refuse_doubles(keys, places)
    return keys


def read_admin_keys(file: Path | None, *, clients: Sequence[ApiKey]) -> list[ApiKey]:
    """The keys of operators: clients' keys with the scope `admin`, and those of a file of the same form. No key of that
    file may be a client's.

    Raises:
        ConfigError: the file is missing or unusable, or a key is; the message never holds a key.
    """
    of_clients = [client for client in clients if "admin" in client.scopes]
    if file is None:
        return of_clients
    keys = [replace(key, scopes=frozenset({"admin"})) for key in _read_file(file)]
    places = [f"key {number} of {file} ({key.name!r})" for number, key in enumerate(keys, start=1)]
    for key, place in zip(keys, places, strict=True):
        if any(key.sha256 == client.sha256 for client in clients):
            raise ConfigError(f"{place} is an API key too: its client could change what is served; make another one")
        if key.tokens_per_min is not None:
            raise ConfigError(f"{place} has tokens_per_min, and commands cost no tokens; leave it out")
    _refuse_doubles([*of_clients, *keys], [*(f"the API key {client.name!r}" for client in of_clients), *places])
    return [*of_clients, *keys]


def checked_key(key: str, options: Mapping[str, object]) -> ApiKey:
    """A key as a table of a file would give it, checked in the same way.

    Raises:
        ConfigError: the key or an option is unusable.
    """
    table = {"key": key, **options}
    try:
        return _KeyTable.model_validate(table).as_key()
    except ValidationError as error:
        raise ConfigError(explain(error, _KeyTable, data=table)) from None


def _key_of_variable(number: int, key: str) -> ApiKey:
    problem = _unusable(key)
    if problem:
        raise ConfigError(f"{_VARIABLE}: key {number} {problem} (commas separate keys)")
    return ApiKey(name=f"key-{number}", sha256=hash_key(key))


def _unusable(key: str) -> str:
    """Why no client can send this key; empty for a good one."""
    if not key:
        return "is empty"
    if any(character.isspace() or ord(character) < 32 or ord(character) == 127 for character in key):
        return "has a space or a control character inside; a key is one word"
    if key[0] in _QUOTES and key[-1] == key[0]:
        return "is in quotation marks, which would be part of it; leave them out"
    return ""


def _read_file(path: Path) -> list[ApiKey]:
    try:
        tables = read_toml(path, secret=True)
        others_may_read = bool(path.stat().st_mode & stat.S_IROTH)
    except OSError as error:
        raise ConfigError(f"cannot read the API keys in {path} ({error.strerror})") from None
    try:
        keys = _KeyFile.model_validate(tables).key
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, _KeyFile, data=tables)}") from None
    if others_may_read and any(key.key for key in keys):
        logger.warning(
            "%s holds API keys in plain text, and every user of this machine may read it; "
            "run chmod 640, or write their sha256 instead",
            path,
        )
    return [key.as_key() for key in keys]


def _refuse_doubles(keys: Sequence[ApiKey], places: Sequence[str]) -> None:
    """Of two limits for one key only one would hold, and two keys with one name would share them."""
    place_of_name: dict[str, str] = {}
    place_of_hash: dict[str, str] = {}
    for key, place in zip(keys, places, strict=True):
        if key.sha256 in place_of_hash:
            raise ConfigError(f"{place} is the same as {place_of_hash[key.sha256]}; remove one of them")
        if key.name in place_of_name:
            raise ConfigError(f"{place} and {place_of_name[key.name]} have the same name, {key.name!r}; rename one")
        place_of_hash[key.sha256] = place_of_name[key.name] = place
