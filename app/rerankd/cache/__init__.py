"""The caches by URL scheme. A new one is a file of this folder and one line here."""

from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult

from rerankd.cache.base import Cache
from rerankd.cache.memory import MemoryCache
from rerankd.cache.signed import SignedCache
from rerankd.cache.url import check_no_server, read_parameters, split_url
from rerankd.errors import ConfigError
from rerankd.telemetry.observer import Observer, Silent


def _no_cache(url: SplitResult) -> None:
    check_no_server(url)
    read_parameters(url, {})


def _redis(url: SplitResult) -> Cache:
    from rerankd.cache.redis import RedisCache  # noqa: PLC0415 - other caches, and who imports `cache.lru`, need no client

    return RedisCache.from_url(url)


CACHES: Final[dict[str, Callable[[SplitResult], Cache | None]]] = {
    "memory": MemoryCache.from_url,
    "redis": _redis,
    "rediss": _redis,
    "none": _no_cache,
}
# Caches outside of this process, which others may write to.
_SHARED: Final = {"redis", "rediss"}
_SILENT: Final = Silent()


def open_cache(url: str, *, secret: str | None = None, observer: Observer = _SILENT) -> Cache | None:
    """Build the cache that a URL names, signed where there is a secret; None for `none://`. Nothing is connected yet.

    Raises:
        ConfigError: an unknown scheme, an unusable parameter, or a secret for a cache inside this process.
    """
    parts = split_url(url)
    if parts.scheme not in CACHES:
        known = ", ".join(f"{scheme}://" for scheme in CACHES)
        raise ConfigError(f"RERANKD_CACHE_URL must begin with one of {known}")
    cache = CACHES[parts.scheme](parts)
    if secret is None:
        return cache
    if cache is None or parts.scheme not in _SHARED:
        raise ConfigError(
            f"RERANKD_CACHE_SECRET signs what is kept in Redis, but RERANKD_CACHE_URL is {parts.scheme}://: "
            "unset the secret, or name a Redis"
        )
    return SignedCache(cache, secret=secret, observer=observer)


async def connect_cache(url: str, *, secret: str | None = None, observer: Observer = _SILENT) -> Cache | None:
    """The same, once it was asked whether it can be used. One that is only away now is no error.

    Raises:
        ConfigError: the URL is unusable, or whatever it names can never serve as a cache.
    """
    cache = open_cache(url, secret=secret, observer=observer)
    if cache is not None:
        try:
            await cache.check()
        except ConfigError:
            await cache.close()
            raise
    return cache
