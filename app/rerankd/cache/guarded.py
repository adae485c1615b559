"""A Redis behind a timeout and a circuit breaker.

While the breaker is open no request waits for Redis at all; a background task asks it from time to time whether it is
back. What goes wrong for a request is `CacheUnavailable` and nothing else. A server that can never be used, as one with
another password, is told from one that is away: `check` refuses it, and later the log says why.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Final, TypeVar
from urllib.parse import SplitResult

from redis.exceptions import RedisError, ResponseError

from rerankd.cache.access import Access
from rerankd.cache.deployments import Deployment
from rerankd.cache.redis_url import DEFAULTS, open_deployment
from rerankd.cache.refusals import why_hopeless
from rerankd.cache.url import read_parameters
from rerankd.errors import CacheUnavailable, ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_ANSWER_S: Final = 2.0
_FAILURES_TO_OPEN: Final = 3
_SLICES: Final = 5
# Not only the client's own: uvloop, for one, raises RuntimeError on a connection that was just lost.
_ERRORS: Final = (RedisError, OSError, RuntimeError)
_LONGEST_ERROR: Final = 300
_REFUSALS_LOGGED_EVERY_S: Final = 60.0


class GuardedRedis:
    """A round trip that outlasts `timeout_s` is given up and counts as a failure; at most `max_connections` run at a
    time, others wait for their turn within the same timeout. `instead` is what happens while Redis is away, for the
    log.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        timeout_s: float,
        probe_interval_s: float,
        max_connections: int,
        secrets: Sequence[str] = (),
        instead: str,
    ) -> None:
        self.deployment = deployment
        self._secrets = secrets
        self._instead = instead
        self.timeout_s = timeout_s
        self._probe_interval_s = probe_interval_s
        self._turns = asyncio.Semaphore(max_connections)
        self._failures = 0
        self._probe: asyncio.Task[None] | None = None
        self._refusal_logged_at: float | None = None

    @classmethod
    def from_url(cls, url: SplitResult, access: Access, *, instead: str) -> "GuardedRedis":
        """Build from a URL of `redis_url.open_deployment`.

        Raises:
            ConfigError: the URL is unusable.
        """
        parameters = read_parameters(url, DEFAULTS[url.scheme])
        deployment, secrets = open_deployment(url, access, parameters)
        return cls(
            deployment,
            timeout_s=parameters["timeout_ms"] / 1000,
            probe_interval_s=parameters["probe_ms"] / 1000,
            max_connections=parameters["max_connections"],
            secrets=secrets,
            instead=instead,
        )

    @property
    def is_open(self) -> bool:
        """Whether the breaker keeps calls away from Redis."""
        return self._probe is not None

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call of the deployment answers.

        Raises:
            CacheUnavailable: Redis is away, slow, full or broken.
        """
        self._refuse_if_open()
        try:
            answer = await _within(self.timeout_s, self._take_turn(call))
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

    async def check(self) -> None:
        """Try what requests will need.

        Raises:
            ConfigError: this server can never be used as it is. One that is away, full or a replica may come back.
        """
        try:
            await _within(_FIRST_ANSWER_S, self.deployment.probe())
        except _ERRORS as error:
            reason = why_hopeless(error)
            if reason:
                raise ConfigError(f"RERANKD_CACHE_URL: {reason}; {self._told(error)}") from None
            logger.warning("Redis cannot be used now, %s: %s", self._instead, self._told(error))

    async def close(self) -> None:
        """End the probe and every connection."""
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probe
        with contextlib.suppress(Exception):
            await _within(self.timeout_s, self.deployment.close())

    async def _take_turn(self, call: Callable[[], Awaitable[T]]) -> T:
        """Without turns, the client's pool would raise when all of its connections are in use."""
        async with self._turns:
            self._refuse_if_open()
            return await call()

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
            logger.error("the cache cannot be used, %s: %s; %s", self._instead, reason, self._told(error))
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
        told = f"{type(error).__name__}: {error}"
        for secret in self._secrets:
            told = told.replace(secret, "***")
        return told[:_LONGEST_ERROR]

    async def _probe_until_back(self) -> None:
        while True:
            await asyncio.sleep(self._probe_interval_s)
            if await self._is_back():
                break
        logger.warning("Redis is back")
        # The next failure gives it up again: one that answers pings may still hang on the real work.
        self._failures = _FAILURES_TO_OPEN - 1
        self._probe = None

    async def _is_back(self) -> bool:
        try:
            await _within(_FIRST_ANSWER_S, self.deployment.renew())
            await _within(self.timeout_s, self.deployment.probe())
        except _ERRORS as error:
            if why_hopeless(error):
                self._log_refusal(error)
                return False
            # It says no, so it is there; a full one still answers what it has.
            return isinstance(error, ResponseError)
        return True


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
