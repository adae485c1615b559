"""Reads the address of a Redis: one server, a Unix socket, Sentinels or a cluster, each with TLS or without."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, unquote

from redis import asyncio as redis

from rerankd.cache.access import Access
from rerankd.cache.deployments import Cluster, Deployment, MasterOfSentinels, OneServer, connection_options
from rerankd.cache.url import HOW_TO_WRITE, VARIABLE, servers_of
from rerankd.errors import ConfigError

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_TIMES: Final = {"ttl_s": 7 * 24 * 3600, "timeout_ms": 50, "probe_ms": 1000, "max_connections": 16}
# What may follow the ? of each scheme, and what holds without it.
DEFAULTS: Final[dict[str, dict[str, int]]] = {
    "redis": _TIMES,
    "rediss": _TIMES,
    "redis+sentinel": _TIMES,
    "rediss+sentinel": _TIMES,
    "redis+cluster": _TIMES,
    "rediss+cluster": _TIMES,
    "redis+unix": {**_TIMES, "db": 0},
}


def open_deployment(
    url: SplitResult, access: Access, parameters: Mapping[str, int]
) -> tuple[Deployment, tuple[str, ...]]:
    """What a URL names, not yet connected, and the secrets that no message may repeat.

    The forms, in which `rediss` in the place of `redis` means TLS:

        redis://[user:password@]host[:port][/db]
        redis+sentinel://[user:password@]host[:port][,host[:port]...]/master[/db]
        redis+cluster://[user:password@]host[:port][,host[:port]...]
        redis+unix://[user:password@]/path?db=N

    Raises:
        ConfigError: the URL and the settings beside it do not fit.
    """
    _check_access(url, access)
    password = unquote(url.password or "") or access.password
    options: dict[str, Any] = {
        **connection_options(max_connections=parameters["max_connections"] + 1),  # one for the probe
        "username": unquote(url.username or "") or None,
        "password": password or None,
        **(access.tls() if url.scheme.startswith("rediss") else {}),
    }
    secrets = tuple(secret for secret in (password, access.sentinel_password) if secret)
    match url.scheme.partition("+")[2]:
        case "sentinel":
            master, database = _master_and_database(url)
            sentinels = servers_of(url, _SENTINEL_PORT)
            return MasterOfSentinels(sentinels, master, access, {**options, "db": database}), secrets
        case "cluster":
            if url.path.strip("/") not in {"", "0"}:
                raise ConfigError(f"{VARIABLE}: a cluster has no databases; nothing may follow the servers but ?")
            return Cluster(servers_of(url, _PORT), options), secrets
        case "unix":
            return OneServer(redis.Redis(unix_socket_path=_socket_path(url), db=parameters["db"], **options)), secrets
    (host, port), *others = servers_of(url, _PORT)
    if others:
        raise ConfigError(f"{VARIABLE} names several servers; write redis+sentinel:// or redis+cluster:// in front")
    return OneServer(redis.Redis(host=host, port=port, db=_database(url.path), **options)), secrets


def _check_access(url: SplitResult, access: Access) -> None:
    if access.password and url.password:
        raise ConfigError(f"{VARIABLE} has a password, and RERANKD_CACHE_PASSWORD is another: unset one")
    if access.sentinel_password and not url.scheme.endswith("sentinel"):
        raise ConfigError(
            f"RERANKD_CACHE_SENTINEL_PASSWORD is for redis+sentinel://, but {VARIABLE} is {url.scheme}://"
        )
    if not url.scheme.startswith("rediss"):
        if access.ca_file or access.cert_file or access.key_file:
            raise ConfigError(
                f"RERANKD_CACHE_CA_FILE, _CERT_FILE and _KEY_FILE are for TLS, but {VARIABLE} is {url.scheme}://: "
                "write rediss in front, or unset them"
            )
        return
    access.check_files()


def _master_and_database(url: SplitResult) -> tuple[str, int]:
    master, _, database = url.path.removeprefix("/").partition("/")
    if not master:
        raise ConfigError(f"{VARIABLE} names no master; write redis+sentinel://host:26379,host:26379/name/db")
    return unquote(master), _database(database)


def _database(path: str) -> int:
    database = path.strip("/")
    if database and not (database.isascii() and database.isdecimal()):
        raise ConfigError(f"{VARIABLE}: the number of a database must stand there, and nothing else; {HOW_TO_WRITE}")
    return int(database or 0)


def _socket_path(url: SplitResult) -> str:
    if url.hostname or not url.path.strip("/"):
        raise ConfigError(f"{VARIABLE} names no socket; write redis+unix:///path?db=N, with three slashes")
    return unquote(url.path)
