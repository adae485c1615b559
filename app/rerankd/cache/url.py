"""Reads a cache URL. It may hold a password, whole or in the wrong place, so no message repeats any part of it."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from rerankd.config.options import closest
from rerankd.errors import ConfigError

VARIABLE: Final = "RERANKD_CACHE_URL"
HOW_TO_WRITE: Final = (
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
        for server in _servers(parts):
            _ = server.port, server.hostname
    except ValueError:
        raise ConfigError(f"{VARIABLE} cannot be read as a URL; {HOW_TO_WRITE}") from None
    if parts.fragment:
        raise ConfigError(f"{VARIABLE} has a # in it; {HOW_TO_WRITE}")
    return parts


def servers_of(url: SplitResult, default_port: int) -> list[tuple[str, int]]:
    """Host and port of each server that a URL names, between commas.

    Raises:
        ConfigError: one has no host.
    """
    servers = _servers(url)
    if not all(server.hostname for server in servers):
        raise ConfigError(f"{VARIABLE} names no host; {HOW_TO_WRITE}")
    return [(server.hostname or "", server.port or default_port) for server in servers]


def _servers(url: SplitResult) -> list[SplitResult]:
    return [urlsplit(f"//{server}") for server in url.netloc.rpartition("@")[2].split(",")]


def check_no_server(url: SplitResult) -> None:
    """Whether a URL is a scheme and parameters alone.

    Raises:
        ConfigError: it is more.
    """
    if url.netloc or url.path:
        raise ConfigError(f"{VARIABLE}: nothing may follow {url.scheme}:// but ? and parameters")


def read_parameters(url: SplitResult, defaults: Mapping[str, int]) -> dict[str, int]:
    """The URL's parameters over their defaults, all positive whole numbers, but for `db`, which may be 0.

    Raises:
        ConfigError: an unknown parameter or a value that is no such number.
    """
    parameters = dict(defaults)
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name not in defaults:
            near = closest(name, defaults)
            known = f"did you mean {near}?" if near else f"known: {', '.join(defaults) or 'none'}"
            raise ConfigError(f"{VARIABLE} has a parameter that {url.scheme}:// does not know; {known}")
        if not value.isdecimal() or int(value) < (name != "db"):
            raise ConfigError(f"{VARIABLE}: {name} must be a whole number" + " above 0" * (name != "db"))
        parameters[name] = int(value)
    return parameters
