"""What a key may ask for, counted by all replicas together in Redis.

Redis holds a bucket for each limit of a key and fills it by its own clock. One script fills it, takes in what was
settled, and takes what is asked for or refuses: no two replicas give the same token. Requests are counted when they
come, and tokens are reserved before the work. What a request turns out to cost is settled afterwards, in the
background.

While Redis is away each replica gives its share: the limit, divided by the replicas that were seen last. What it gave
is debited in Redis once that is back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import blake2b
from math import inf
from time import perf_counter
from typing import Final, Protocol
from uuid import uuid4

from rerankd.cache.guarded import GuardedRedis
from rerankd.errors import CacheUnavailable
from rerankd.gateway.rates import (
    Allowance,
    Bucket,
    Counted,
    Rates,
    request_bucket,
    spare_s,
    token_bucket,
    too_many_requests,
    too_many_tokens,
)
from rerankd.telemetry.observer import Observer

_HEARTBEAT_S: Final = 2.0
# A replica that has been silent for longer is gone.
_SILENT_S: Final = 3 * _HEARTBEAT_S
_REPLICAS: Final = "quota:replicas"
_SEEN: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[1], 60)
return redis.call('ZCARD', KEYS[1])
"""
# As `Allowance.take`: while anything is left, a request gets all that it asks for. A bucket that nobody asks for until
# it is full again need not be kept. What a hung Redis executes when nobody waits for it any more must change nothing.
_TAKE: Final = """
local per_s, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local settled, amount, forced = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
if now > tonumber(ARGV[6]) then return {-1, '0', string.format('%.6f', now)} end
local held = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = capacity
if held[1] then
    level = math.min(capacity, tonumber(held[1]) + math.max(0, now - tonumber(held[2])) * per_s)
end
level = math.min(capacity, level - settled)
local taken = 0
if level >= 1 or forced then
    taken = 1
    level = level - amount
end
redis.call('HSET', KEYS[1], 'level', string.format('%.17g', level), 'at', string.format('%.17g', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(math.min((capacity - level) / per_s, 1e9) * 1000) + 1000)
return {taken, string.format('%.17g', level), string.format('%.6f', now)}
"""


class SharedBucket:
    """One limit of a key. `known` is the bucket as Redis told it last, less what was taken here since. `unsent` was
    used here, and Redis does not know it yet.
    """

    def __init__(self, key: str, bucket: Bucket) -> None:
        self.key = key
        self.known = bucket
        self.unsent = 0.0

    def use(self, amount: float) -> None:
        """Take an amount here, and tell Redis later."""
        self.known.take(amount)
        self.unsent += amount


class RateStore(Protocol):
    """Counts the limits of keys for several processes. `replicas`: how many were seen last."""

    clock: Callable[[], float]

    @property
    def replicas(self) -> int: ...

    async def take(self, bucket: SharedBucket, amount: float, *, forced: bool = False) -> bool:
        """Take an amount if anything is left, or by force, and learn what is left then.

        Raises:
            CacheUnavailable: the store is away.
        """

    def settle(self, bucket: SharedBucket) -> None:
        """Tell the store soon what a bucket has not sent."""


class SharedAllowance:
    """A key's limits in Redis, and while that is away this replica's share of them; see `rates.Counted`."""

    def __init__(self, rates: Rates, key: str, store: RateStore) -> None:
        self._rates = rates
        self._store = store
        requests, tokens = request_bucket(rates), token_bucket(rates)
        self._requests = SharedBucket(f"quota:{key}:requests", requests) if requests else None
        self._tokens = SharedBucket(f"quota:{key}:tokens", tokens) if tokens else None
        self._buckets = (self._requests, self._tokens)
        # While Redis is away: what is left of this replica's share, and what would be if nobody had asked.
        self._share: Allowance | None = None
        self._unused: Allowance | None = None
        self._overdrawn_by: object = None

    @property
    def limited(self) -> bool:
        """Whether tokens are counted."""
        return self._tokens is not None

    async def ask(self, *, now: float) -> None:
        """Count one request, and learn how many tokens are left.

        Raises:
            RateLimited: as `Allowance.ask`.
        """
        try:
            taken = await self._store.take(self._requests, 1) if self._requests else True
            if taken and self._tokens:
                await self._store.take(self._tokens, 0)
        except CacheUnavailable:
            await self._alone(now).ask(now=now)
            return
        self._together(now)
        if self._requests and not taken:
            raise too_many_requests(self._rates, self._requests.known.wait_s(1.0, now=self._store.clock()))

    def spare_s(self, *, now: float) -> float:
        """As `Allowance.spare_s`, by what is known here."""
        if self._share:
            return self._share.spare_s(now=now)
        return spare_s([bucket.known for bucket in self._buckets if bucket], now=self._store.clock())

    def check_tokens(self, *, now: float) -> None:
        """As `Allowance.check_tokens`, by what `ask` has learnt."""
        self.take(0, by=None, now=now)

    async def reserve(self, tokens: int, *, by: object, now: float) -> None:
        """Take tokens from what all replicas share, before any work is done.

        Raises:
            RateLimited: as `Allowance.take`.
        """
        if self._tokens is None:
            return
        try:
            taken = await self._store.take(self._tokens, tokens, forced=by is self._overdrawn_by)
        except CacheUnavailable:
            self._alone(now).take(tokens, by=by, now=now)
            return
        self._together(now)
        if not taken:
            raise too_many_tokens(self._rates, self._tokens.known.wait_s(1.0, now=self._store.clock()))
        self._overdrawn_by = by if self._tokens.known.level < 1 else None

    def take(self, tokens: int, *, by: object, now: float) -> None:
        """Take tokens by what is known here, and tell Redis in the background.

        Raises:
            RateLimited: as `Allowance.take`.
        """
        if self._tokens is None:
            return
        if self._share:
            self._share.take(tokens, by=by, now=now)
            return
        wait_s = self._tokens.known.wait_s(1.0, now=now)
        if wait_s and (by is None or by is not self._overdrawn_by):
            raise too_many_tokens(self._rates, wait_s)
        if tokens:
            self._tokens.use(tokens)
            self._overdrawn_by = by if self._tokens.known.level < 1 else None
            self._store.settle(self._tokens)

    def give_back(self, tokens: int) -> None:
        """Return tokens that were taken and not used; a negative number takes more."""
        if self._tokens is None or not tokens:
            return
        if self._share:
            self._share.give_back(tokens)
            return
        self._tokens.use(-tokens)
        self._store.settle(self._tokens)

    def _alone(self, now: float) -> Allowance:
        """Redis is away: the share of this replica, which begins with its share of what was missing."""
        if self._share is None:
            part = 1 / self._store.replicas
            missing = [part * bucket.known.missing(now=now) if bucket else 0.0 for bucket in self._buckets]
            self._share, self._unused = (Allowance(self._rates, share=part) for _ in range(2))
            for share in (self._share, self._unused):
                share.debit(*missing, now=now)
        return self._share

    def _together(self, now: float) -> None:
        """Redis answers, so it learns what this replica gave meanwhile."""
        if self._share is None or self._unused is None:
            return
        for bucket, left, unused in zip(
            self._buckets, self._share.missing(now=now), self._unused.missing(now=now), strict=True
        ):
            if bucket:
                bucket.use(left - unused)
                self._store.settle(bucket)
        self._share = self._unused = None


class SharedRates:
    """The buckets of all keys in one Redis. What it cannot count there is counted by the share of this replica."""

    def __init__(self, redis: GuardedRedis, observer: Observer, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self.replicas = 1
        self._redis = redis
        self._observer = observer
        self._name = uuid4().hex
        # Redis's clock by ours; unknown before the first answer.
        self._ahead_s = inf
        self._unsettled: dict[SharedBucket, None] = {}
        self._work_waits = asyncio.Event()

    def open(self, name: str, rates: Rates) -> Counted:
        """What an API key of this name may ask for. Redis never sees the name."""
        if rates == Rates():
            return Allowance(rates)
        return SharedAllowance(rates, blake2b(name.encode(), digest_size=16).hexdigest(), self)

    async def take(self, bucket: SharedBucket, amount: float, *, forced: bool = False) -> bool:
        """Take an amount if anything is left, or by force, and learn what is left then.

        Raises:
            CacheUnavailable: Redis is away.
        """
        settled, bucket.unsent = bucket.unsent, 0.0
        until = self.clock() + self._ahead_s + self._redis.timeout_s
        arguments = (bucket.known.per_s, bucket.known.capacity, settled, amount, int(forced), until)
        try:
            taken, level, now = await self._redis.ask(
                partial(self._redis.deployment.evaluate, _TAKE, bucket.key, *arguments)
            )
            self._ahead_s = float(now) - self.clock()
            if taken < 0:
                raise CacheUnavailable("Redis was late")
        except BaseException as error:
            bucket.unsent += settled
            if isinstance(error, CacheUnavailable):
                self._observer.cache_failed(operation="quota")
            raise
        bucket.known.level, bucket.known.filled_at = float(level) - bucket.unsent, self.clock()
        return bool(taken)

    def settle(self, bucket: SharedBucket) -> None:
        """Tell Redis soon what a bucket has not sent."""
        self._unsettled[bucket] = None
        self._work_waits.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Settle in the background; leaving the context settles the rest.

        Raises:
            ConfigError: this Redis can never be used.
        """
        await self._redis.check()
        with suppress(CacheUnavailable):
            await self._show_up()
        settling = asyncio.create_task(self._settle_forever(), name="quotas")
        try:
            yield
        finally:
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)
            with suppress(CacheUnavailable):
                await self._settle()
            await self._redis.close()

    async def _settle_forever(self) -> None:
        due = self.clock() + _HEARTBEAT_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - self.clock())):
                    await self._work_waits.wait()
            self._work_waits.clear()
            with suppress(CacheUnavailable):
                if self.clock() >= due:
                    due = self.clock() + _HEARTBEAT_S
                    await self._show_up()
                await self._settle()

    async def _settle(self) -> None:
        while self._unsettled:
            bucket = next(iter(self._unsettled))
            if bucket.unsent:
                await self.take(bucket, 0)
            del self._unsettled[bucket]

    async def _show_up(self) -> None:
        """Tell that this replica is there, and count all that are."""
        seen = partial(self._redis.deployment.evaluate, _SEEN, _REPLICAS, self._name, _SILENT_S)
        self.replicas = max(1, int(await self._redis.ask(seen)))
