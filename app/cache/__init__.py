"""The caches by URL scheme. A new one is a file of this folder and one line here."""

from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult, urlsplit

from app.cache.base import Cache
from app.cache.memory import MemoryCache
from app.cache.redis import RedisCache
from app.errors import ConfigError

CACHES: Final[dict[str, Callable[[SplitResult], Cache | None]]] = {
    "memory": MemoryCache.from_url,
    "redis": RedisCache.from_url,
    "rediss": RedisCache.from_url,
    "none": lambda _: None,
}


def open_cache(url: str) -> Cache | None:
    """Build the cache that a URL names; None for `none://`. Nothing is connected yet.

    Raises:
        ConfigError: an unknown scheme or an unusable parameter.
    """
    parts = urlsplit(url)
    if parts.scheme not in CACHES:
        known = ", ".join(f"{scheme}://" for scheme in CACHES)
        raise ConfigError(f"RERANKD_CACHE_URL: unknown scheme {parts.scheme!r}; known: {known}")
    return CACHES[parts.scheme](parts)
