"""Scores shared between processes in Redis: one pipelined round trip, a timeout, and a circuit breaker.

While the breaker is open no request waits for Redis at all; a background task asks it from time to time whether it is
back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import SplitResult, urlunsplit

from redis import asyncio as redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from app.cache.url import read_parameters
from app.errors import CacheUnavailable, ConfigError

logger = logging.getLogger(__name__)

_PREFIX: Final = b"rerankd:"
_KEYS_PER_COMMAND: Final = 1000
_FAILURES_TO_OPEN: Final = 3
_DEFAULTS: Final = {"ttl_s": 7 * 24 * 3600, "timeout_ms": 50, "probe_ms": 1000, "max_connections": 16}


class RedisCache:
    """Keys expire after `ttl_s`. A call that outlasts `timeout_s` is given up and counts as a failure."""

    def __init__(self, client: redis.Redis, *, ttl_s: int, timeout_s: float, probe_interval_s: float) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._probe_interval_s = probe_interval_s
        self._failures = 0
        self._probe: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: SplitResult) -> "RedisCache":
        """Build from `redis://[user:password@]host[:port][/db]?ttl_s=N&timeout_ms=N` (rediss:// for TLS).

        Raises:
            ConfigError: the URL is unusable.
        """
        parameters = read_parameters(url, _DEFAULTS)
        timeout_s = parameters["timeout_ms"] / 1000
        try:
            client = redis.Redis.from_url(
                urlunsplit((url.scheme, url.netloc, url.path, "", "")),
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                max_connections=parameters["max_connections"],
                retry=None,
            )
        except ValueError as error:
            raise ConfigError(f"RERANKD_CACHE_URL: {error}") from None
        return cls(
            client,
            ttl_s=parameters["ttl_s"],
            timeout_s=timeout_s,
            probe_interval_s=parameters["probe_ms"] / 1000,
        )

    @property
    def is_open(self) -> bool:
        """Whether the breaker keeps calls away from Redis."""
        return self._probe is not None

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look keys up in one round trip.

        Raises:
            CacheUnavailable: Redis is away, slow or broken.
        """
        pipeline = self._pipeline()
        names = [_PREFIX + key.hex().encode() for key in keys]
        for start in range(0, len(names), _KEYS_PER_COMMAND):
            pipeline.mget(names[start : start + _KEYS_PER_COMMAND])
        found = await self._execute(pipeline)
        return [value for values in found for value in values]

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Store entries in one round trip.

        Raises:
            CacheUnavailable: Redis is away, slow, full or broken.
        """
        pipeline = self._pipeline()
        for key, value in entries.items():
            pipeline.set(_PREFIX + key.hex().encode(), value, ex=self._ttl_s)
        await self._execute(pipeline)

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probe
        await self._client.aclose()

    def _pipeline(self) -> Pipeline:
        if self.is_open:
            raise CacheUnavailable("Redis was given up for the moment")
        return self._client.pipeline(transaction=False)

    async def _execute(self, pipeline: Pipeline) -> list[list[bytes | None]]:
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await pipeline.execute()
        except ResponseError as error:
            # Redis is there and says no (full, read-only, wrong type): quick, so no reason to stay away.
            raise CacheUnavailable(f"Redis answered: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            self._count_failure(error)
            raise CacheUnavailable(f"Redis did not answer: {error!r}") from error
        self._failures = 0
        return answers

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_OPEN and not self.is_open:
            logger.warning("Redis is given up for the moment: %r", error)
            self._probe = asyncio.create_task(self._probe_until_back(), name="redis-probe")

    async def _probe_until_back(self) -> None:
        while True:
            await asyncio.sleep(self._probe_interval_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._client.ping()
            except (RedisError, OSError, TimeoutError):
                continue
            logger.warning("Redis is back")
            self._failures = 0
            self._probe = None
            return
