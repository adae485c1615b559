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
from typing import Final
from uuid import uuid4

from rerankd.cache.guarded import GuardedRedis
from rerankd.errors import CacheUnavailable
from rerankd.gateway.rates import Allowance, Counted, Rates
from rerankd.gateway.shared_allowance import SharedAllowance, SharedBucket
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
