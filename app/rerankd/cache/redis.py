"""Entries shared between processes in Redis: a thousand keys per round trip, a timeout, and a circuit breaker.

While the breaker is open no request waits for Redis at all; a background task asks it from time to time whether it is
back. What goes wrong for a request is `CacheUnavailable` and nothing else. A server that can never be used, as a
cluster or one with another password, is told from one that is away: `check` refuses it, and later the log says why.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Mapping, Sequence
from contextvars import Context
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, unquote, urlunsplit

from redis import asyncio as redis
from redis.exceptions import RedisError, ResponseError

from rerankd.cache.refusals import why_hopeless
from rerankd.cache.url import check_server, read_parameters
from rerankd.errors import CacheUnavailable, ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PREFIX: Final = b"rerankd:"
# The event loop is busy with a command's bytes for some milliseconds at this number, and not longer.
_KEYS_PER_COMMAND: Final = 1000
# One command for many keys costs a fifth of what a pipeline of as many SETs costs this process.
_PUT: Final = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[1]) end"
# Two that lie in different slots of a cluster, and are gone in a millisecond.
_PROBE_KEYS: Final = (_PREFIX + b"probe-1", _PREFIX + b"probe-2")
_PROBE_PUT: Final = "for i = 1, #KEYS do redis.call('SET', KEYS[i], '', 'PX', 1) end"
_FIRST_ANSWER_S: Final = 2.0
_FAILURES_TO_OPEN: Final = 3
_SLICES: Final = 5
# Not only the client's own: uvloop, for one, raises RuntimeError on a connection that was just lost.
_ERRORS: Final = (RedisError, OSError, RuntimeError)
_LONGEST_ERROR: Final = 300
_REFUSALS_LOGGED_EVERY_S: Final = 60.0
_DEFAULTS: Final = {"ttl_s": 7 * 24 * 3600, "timeout_ms": 50, "probe_ms": 1000, "max_connections": 16}


class RedisCache:
    """Keys expire after `ttl_s`. A round trip that outlasts `timeout_s` is given up and counts as a failure; at most
    `max_connections` run at a time, others wait for their turn within the same timeout.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        ttl_s: int,
        timeout_s: float,
        probe_interval_s: float,
        max_connections: int,
        password: str = "",
    ) -> None:
        self._client = client
        self._password = password
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._probe_interval_s = probe_interval_s
        self._turns = asyncio.Semaphore(max_connections)
        self._failures = 0
        self._probe: asyncio.Task[None] | None = None
        self._refusal_logged_at: float | None = None

    @classmethod
    def from_url(cls, url: SplitResult) -> "RedisCache":
        """Build from `redis://[user:password@]host[:port][/db]?ttl_s=N&timeout_ms=N` (rediss:// for TLS).

        Raises:
            ConfigError: the URL is unusable.
        """
        parameters = read_parameters(url, _DEFAULTS)
        check_server(url)
        try:
            client = redis.Redis.from_url(
                urlunsplit((url.scheme, url.netloc, url.path, "", "")),
                # Time is kept by `_within`: the client's own timeouts fire when only the event loop was late.
                socket_timeout=None,
                socket_connect_timeout=None,
                # Version 3 of the protocol keeps this client from noticing that an idle connection was closed.
                protocol=2,
                max_connections=parameters["max_connections"] + 1,  # one for the probe
                retry=None,
            )
        except ValueError:
            raise ConfigError("RERANKD_CACHE_URL cannot be read as a Redis URL; write redis://host:port/0") from None
        return cls(
            client,
            ttl_s=parameters["ttl_s"],
            timeout_s=parameters["timeout_ms"] / 1000,
            probe_interval_s=parameters["probe_ms"] / 1000,
            max_connections=parameters["max_connections"],
            password=unquote(url.password or ""),
        )

    @property
    def is_open(self) -> bool:
        """Whether the breaker keeps calls away from Redis."""
        return self._probe is not None

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look keys up.

        Raises:
            CacheUnavailable: Redis is away, slow or broken.
        """
        found: list[bytes | None] = []
        for start in range(0, len(keys), _KEYS_PER_COMMAND):
            found += await self._ask("MGET", *_names(keys[start : start + _KEYS_PER_COMMAND]))
        return found

    async def put_many(self, entries: Mapping[bytes, bytes], *, owner: str = "") -> None:  # noqa: ARG002 - see below
        """Store entries. Redis knows no owners: what it drops is for its own settings to say.

        Raises:
            CacheUnavailable: Redis is away, slow, full or broken; some entries may be stored.
        """
        keys, values = list(entries), list(entries.values())
        for start in range(0, len(keys), _KEYS_PER_COMMAND):
            end = start + _KEYS_PER_COMMAND
            names = _names(keys[start:end])
            await self._ask("EVAL", _PUT, len(names), *names, self._ttl_s, *values[start:end])

    async def check(self) -> None:
        """Try what requests will need.

        Raises:
            ConfigError: this server can never be used as it is. One that is away, full or a replica may come back.
        """
        try:
            await _within(_FIRST_ANSWER_S, self._try_commands())
        except _ERRORS as error:
            reason = why_hopeless(error)
            if reason:
                raise ConfigError(f"RERANKD_CACHE_URL: {reason}; {self._told(error)}") from None
            logger.warning("Redis cannot be used now, scores are computed instead: %s", self._told(error))

    async def close(self) -> None:
        """End the probe and every connection."""
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probe
        with contextlib.suppress(Exception):
            await _within(self._timeout_s, self._client.aclose())

    async def _ask(self, *command: Any) -> Any:  # noqa: ANN401 - commands take and give bytes, texts and numbers
        self._refuse_if_open()
        try:
            answer = await _within(self._timeout_s, self._take_turn(*command))
        except CacheUnavailable:
            raise
        except ResponseError as error:
            # Redis is there and says no (full, read-only, wrong type): quick, so no reason to stay away.
            self._log_refusal(error)
            if why_hopeless(error):
                self._give_up()
            # The client's frames hold this error, and its trace the frames: keys and values would stay in memory.
            raise CacheUnavailable(f"Redis answered: {self._told(error)}") from error.with_traceback(None)
        except Exception as error:
            # Not only the client's errors: uvloop, for one, raises RuntimeError on a connection that was just lost.
            self._count_failure(error)
            raise CacheUnavailable(f"Redis did not answer: {self._told(error)}") from error
        self._failures = 0
        return answer

    async def _take_turn(self, *command: Any) -> Any:  # noqa: ANN401 - as above
        """Without turns, the client's pool would raise when all of its connections are in use."""
        async with self._turns:
            self._refuse_if_open()
            return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def _refuse_if_open(self) -> None:
        if self.is_open:
            raise CacheUnavailable("Redis is not asked for a while, after failures")

    def _log_refusal(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if self._refusal_logged_at is not None and now - self._refusal_logged_at < _REFUSALS_LOGGED_EVERY_S:
            return
        self._refusal_logged_at = now
        reason = why_hopeless(error)
        if reason:
            logger.error("the cache cannot be used, scores are computed instead: %s; %s", reason, self._told(error))
        else:
            logger.warning("Redis refuses a command: %s", self._told(error))

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_OPEN and not self.is_open:
            if why_hopeless(error):
                self._log_refusal(error)
            else:
                logger.warning("Redis is not asked for a while: %s", self._told(error))
            self._give_up()

    def _give_up(self) -> None:
        if not self.is_open:
            # In a context of its own: what it logs is not a part of the request that failed.
            self._probe = asyncio.create_task(self._probe_until_back(), name="redis-probe", context=Context())

    def _told(self, error: Exception) -> str:
        """An error as the log may have it: some servers repeat what they were sent, the password too."""
        told = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
        return told.replace(self._password, "***") if self._password else told

    async def _probe_until_back(self) -> None:
        while True:
            await asyncio.sleep(self._probe_interval_s)
            if await self._is_back():
                break
        logger.warning("Redis is back")
        # The next failure gives it up again: one that answers pings may still hang on the real work.
        self._failures = _FAILURES_TO_OPEN - 1
        self._probe = None

    async def _try_commands(self) -> None:
        """What requests do, for a cluster or a Sentinel answers pings too."""
        await self._client.execute_command("MGET", *_PROBE_KEYS)  # type: ignore[no-untyped-call]
        await self._client.execute_command("EVAL", _PROBE_PUT, len(_PROBE_KEYS), *_PROBE_KEYS)  # type: ignore[no-untyped-call]

    async def _is_back(self) -> bool:
        try:
            await _within(self._timeout_s, self._client.connection_pool.disconnect(inuse_connections=False))
            await _within(self._timeout_s, self._try_commands())
        except _ERRORS as error:
            if why_hopeless(error):
                self._log_refusal(error)
                return False
            # It says no, so it is there; a full one still answers what it has.
            return isinstance(error, ResponseError)
        return True


def _names(keys: Sequence[bytes]) -> list[bytes]:
    return [_PREFIX + key.hex().encode() for key in keys]


async def _within(seconds: float, call: Awaitable[T]) -> T:
    """Await a call for so long at most. Time counts in slices, each begun when the one before was seen to end, so that
    an event loop that was busy elsewhere does not take an answer for overdue that it only did not come to read.

    Raises:
        TimeoutError: there is no answer yet.
    """
    asking = asyncio.ensure_future(call)
    try:
        for _ in range(_SLICES):
            await asyncio.wait({asking}, timeout=seconds / _SLICES)
            if asking.done():
                return asking.result()
        raise TimeoutError(f"no answer within {seconds:g} s")
    finally:
        if not asking.done():
            asking.cancel()
            # A connection that was left in mid-answer must be closed before anybody takes it up again.
            await asyncio.wait({asking}, timeout=seconds)
        # An error holds this frame, and the task the error: keys and values would stay in memory.
        del asking
