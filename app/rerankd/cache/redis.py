"""Entries shared between processes in Redis: a thousand keys per round trip."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final
from urllib.parse import SplitResult

from rerankd.cache.access import Access
from rerankd.cache.guarded import GuardedRedis
from rerankd.cache.redis_url import DEFAULTS
from rerankd.cache.url import read_parameters

# The event loop is busy with a command's bytes for some milliseconds at this number, and not longer.
_KEYS_PER_COMMAND: Final = 1000


class RedisCache:
    """Keys expire after `ttl_s`."""

    def __init__(self, redis: GuardedRedis, *, ttl_s: int) -> None:
        self._redis = redis
        self._ttl_s = ttl_s

    @classmethod
    def from_url(cls, url: SplitResult, access: Access) -> "RedisCache":
        """Build from `redis://[user:password@]host[:port][/db]?ttl_s=N&timeout_ms=N`, or another form of
        `redis_url.open_deployment`.

        Raises:
            ConfigError: the URL is unusable.
        """
        redis = GuardedRedis.from_url(url, access, instead="scores are computed instead")
        return cls(redis, ttl_s=read_parameters(url, DEFAULTS[url.scheme])["ttl_s"])

    @property
    def is_open(self) -> bool:
        """Whether the breaker keeps calls away from Redis."""
        return self._redis.is_open

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look keys up.

        Raises:
            CacheUnavailable: Redis is away, slow or broken.
        """
        found: list[bytes | None] = []
        for start in range(0, len(keys), _KEYS_PER_COMMAND):
            part = keys[start : start + _KEYS_PER_COMMAND]
            found += await self._redis.ask(partial(self._redis.deployment.get, part))
        return found

    async def put_many(self, entries: Mapping[bytes, bytes], *, owner: str = "") -> None:  # noqa: ARG002 - see below
        """Store entries. Redis knows no owners: what it drops is for its own settings to say.

        Raises:
            CacheUnavailable: Redis is away, slow, full or broken; some entries may be stored.
        """
        items = iter(entries.items())
        while part := dict(islice(items, _KEYS_PER_COMMAND)):
            await self._redis.ask(partial(self._redis.deployment.put, part, ttl_s=self._ttl_s))

    async def check(self) -> None:
        """Try what requests will need.

        Raises:
            ConfigError: this server can never be used as it is. One that is away, full or a replica may come back.
        """
        await self._redis.check()

    async def close(self) -> None:
        """End the probe and every connection."""
        await self._redis.close()
