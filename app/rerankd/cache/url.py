"""Reads a cache URL. It may hold a password, whole or in the wrong place, so no message repeats any part of it."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from rerankd.config.options import closest
from rerankd.errors import ConfigError

_VARIABLE: Final = "RERANKD_CACHE_URL"
_HOW_TO_WRITE: Final = (
    "write redis://user:password@host:port/db?ttl_s=N, and in a password %2F for /, %3F for ?, %23 for #, %40 for @, "
    "%3A for : and %25 for %"
)


def split_url(url: str) -> SplitResult:
    """The parts of a URL, each of which can be read.

    Raises:
        ConfigError: one cannot.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        raise ConfigError(f"{_VARIABLE} cannot be read as a URL; {_HOW_TO_WRITE}") from None
    if parts.fragment:
        raise ConfigError(f"{_VARIABLE} has a # in it; {_HOW_TO_WRITE}")
    return parts


def check_server(url: SplitResult) -> None:
    """Whether a URL names a server, and a database by its number or none.

    Raises:
        ConfigError: it does not.
    """
    if not url.hostname:
        raise ConfigError(f"{_VARIABLE} names no host; {_HOW_TO_WRITE}")
    database = url.path.strip("/")
    if database and not (database.isascii() and database.isdecimal()):
        raise ConfigError(f"{_VARIABLE}: what follows the port must be the number of a database; {_HOW_TO_WRITE}")


def check_no_server(url: SplitResult) -> None:
    """Whether a URL is a scheme and parameters alone.

    Raises:
        ConfigError: it is more.
    """
    if url.netloc or url.path:
        raise ConfigError(f"{_VARIABLE}: nothing may follow {url.scheme}:// but ? and parameters")


def read_parameters(url: SplitResult, defaults: Mapping[str, int]) -> dict[str, int]:
    """The URL's parameters over their defaults, all positive whole numbers.

    Raises:
        ConfigError: an unknown parameter or a value that is no positive whole number.
    """
    parameters = dict(defaults)
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name not in defaults:
            near = closest(name, defaults)
            known = f"did you mean {near}?" if near else f"known: {', '.join(defaults) or 'none'}"
            raise ConfigError(f"{_VARIABLE} has a parameter that {url.scheme}:// does not know; {known}")
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{_VARIABLE}: {name} must be a whole number above 0")
        parameters[name] = int(value)
    return parameters
