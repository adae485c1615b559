"""The caches by URL scheme. A new one is a file of this folder and one line here."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult

from rerankd.cache.access import Access
from rerankd.cache.base import Cache
from rerankd.cache.memory import MemoryCache
from rerankd.cache.signed import SignedCache
from rerankd.cache.url import check_no_server, read_parameters, split_url
from rerankd.errors import ConfigError
from rerankd.telemetry.observer import Observer, Silent

if TYPE_CHECKING:
    from rerankd.cache.guarded import GuardedRedis


def _no_cache(url: SplitResult) -> None:
    check_no_server(url)
    read_parameters(url, {})


def _redis(url: SplitResult, access: Access) -> Cache:
    from rerankd.cache.redis import RedisCache  # noqa: PLC0415 - other caches, and who imports `cache.lru`, need no client

    return RedisCache.from_url(url, access)


CACHES: Final[dict[str, Callable[[SplitResult], Cache | None]]] = {"memory": MemoryCache.from_url, "none": _no_cache}
# Outside of this process, where others may write too.
SHARED_CACHES: Final[dict[str, Callable[[SplitResult, Access], Cache]]] = {
    "redis": _redis,
    "rediss": _redis,
    "redis+sentinel": _redis,
    "rediss+sentinel": _redis,
    "redis+cluster": _redis,
    "rediss+cluster": _redis,
    "redis+unix": _redis,
}
_SILENT: Final = Silent()
_NO_ACCESS: Final = Access()


def open_cache(
    url: str, *, access: Access = _NO_ACCESS, secret: str | None = None, observer: Observer = _SILENT
) -> Cache | None:
    """Build the cache that a URL names, signed where there is a secret; None for `none://`. Nothing is connected yet.

    Raises:
        ConfigError: an unknown scheme, an unusable parameter, or settings of Redis for another cache.
    """
    parts = split_url(url)
    if parts.scheme in SHARED_CACHES:
        shared = SHARED_CACHES[parts.scheme](parts, access)
        return shared if secret is None else SignedCache(shared, secret=secret, observer=observer)
    if parts.scheme not in CACHES:
        known = ", ".join(f"{scheme}://" for scheme in (*CACHES, *SHARED_CACHES))
        raise ConfigError(f"RERANKD_CACHE_URL must begin with one of {known}")
    if secret is not None:
        raise ConfigError(
            f"RERANKD_CACHE_SECRET signs what is kept in Redis, but RERANKD_CACHE_URL is {parts.scheme}://: "
            "unset the secret, or name a Redis"
        )
    if access != _NO_ACCESS:
        raise ConfigError(
            "RERANKD_CACHE_PASSWORD, _SENTINEL_PASSWORD, _CA_FILE, _CERT_FILE and _KEY_FILE are for Redis, but "
            f"RERANKD_CACHE_URL is {parts.scheme}://: unset them, or name a Redis"
        )
    return CACHES[parts.scheme](parts)


def part_of(url: str, *, processes: int) -> str:
    """The URL of the cache of each of several processes, which together hold what this one says.

    Raises:
        ConfigError: an unknown parameter.
    """
    parts = split_url(url)
    return MemoryCache.part_of_url(parts, processes=processes) if parts.scheme == "memory" else url


def open_redis(url: str, access: Access, *, instead: str) -> "GuardedRedis":
    """The Redis that a URL names. Nothing is connected yet. `instead` is what happens while it is away, for the log.

    Raises:
        ConfigError: the URL is unusable, or names no Redis.
    """
    parts = split_url(url)
    if parts.scheme not in SHARED_CACHES:
        raise ConfigError(f"RERANKD_QUOTA_STORE is redis, but RERANKD_CACHE_URL is {parts.scheme}://: name a Redis")
    from rerankd.cache.guarded import GuardedRedis  # noqa: PLC0415 - as above

    return GuardedRedis.from_url(parts, access, instead=instead)


async def connect_cache(
    url: str, *, access: Access = _NO_ACCESS, secret: str | None = None, observer: Observer = _SILENT
) -> Cache | None:
    """The same, once it was asked whether it can be used. One that is only away now is no error.

    Raises:
        ConfigError: the URL is unusable, or whatever it names can never serve as a cache.
    """
    cache = open_cache(url, access=access, secret=secret, observer=observer)
    if cache is not None:
        try:
            await cache.check()
        except ConfigError:
            await cache.close()
            raise
    return cache
