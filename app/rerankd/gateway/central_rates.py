"""What keys may ask for, counted by the scheduler for all front-end processes of this service."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from rerankd.concurrency.channel import Channel, Head, Reply
from rerankd.gateway.rates import Allowance, Bucket, Counted, Rates
from rerankd.gateway.shared_allowance import SharedAllowance, SharedBucket


class CentralRates:
    """A front end's side; see `shared_allowance.RateStore`. What was used here is told at once: that costs little."""

    replicas = 1

    def __init__(self, channel: Channel, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self._channel = channel

    def open(self, name: str, rates: Rates) -> Counted:
        """What an API key of this name may ask for."""
        return Allowance(rates) if rates == Rates() else SharedAllowance(rates, name, self)

    async def take(self, bucket: SharedBucket, amount: float, *, forced: bool = False) -> bool:
        """Take an amount if anything is left, or by force, and learn what is left then.

        Raises:
            Unavailable: the scheduler is gone, and this process ends too.
        """
        answer, _ = await self._channel.call("take", {**self._told(bucket), "amount": amount, "forced": forced})
        bucket.known.level, bucket.known.filled_at = answer["level"] - bucket.unsent, self.clock()
        return bool(answer["taken"])

    def settle(self, bucket: SharedBucket) -> None:
        """Tell what was used here."""
        self._channel.tell("settle", self._told(bucket))

    def _told(self, bucket: SharedBucket) -> Head:
        settled, bucket.unsent = bucket.unsent, 0.0
        return {
            "key": bucket.key,
            "per_s": bucket.known.per_s,
            "capacity": bucket.known.capacity,
            "settled": settled,
        }


class CentralBuckets:
    """The scheduler's side: the buckets of all keys."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, float, float], Bucket] = {}

    def attend(self, channel: Channel) -> None:
        """Count for a front end from now on."""
        channel.calls["take"] = self._take
        channel.notices["settle"] = self._settle

    def _take(self, told: Head, _: bytes) -> Reply:
        bucket = self._settled(told)
        is_left = not bucket.wait_s(1.0, now=self._clock())
        if taken := is_left or told["forced"]:
            bucket.take(told["amount"])
        return {"taken": taken, "level": bucket.level}, b""

    def _settle(self, told: Head) -> None:
        self._settled(told)

    def _settled(self, told: Head) -> Bucket:
        bucket = self._bucket(told)
        bucket.missing(now=self._clock())
        bucket.level = min(bucket.capacity, bucket.level - told["settled"])
        return bucket

    def _bucket(self, told: dict[str, Any]) -> Bucket:
        """One whose limit was changed begins again, as in one process."""
        place = (told["key"], told["per_s"], told["capacity"])
        if place not in self._buckets:
            self._buckets = {other: kept for other, kept in self._buckets.items() if other[0] != told["key"]}
            self._buckets[place] = Bucket(told["per_s"], told["capacity"])
        return self._buckets[place]
