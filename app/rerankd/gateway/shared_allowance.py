"""What a key may ask for where several processes count it together, in a store that they share."""

from collections.abc import Callable
from typing import Protocol

from rerankd.errors import CacheUnavailable
from rerankd.gateway.rates import (
    Allowance,
    Bucket,
    Rates,
    request_bucket,
    spare_s,
    token_bucket,
    too_many_requests,
    too_many_tokens,
)


class SharedBucket:
    """One limit of a key. `known` is the bucket as the store told it last, less what was taken here since. `unsent` was
    used here, and the store does not know it yet.
    """

    def __init__(self, key: str, bucket: Bucket) -> None:
        self.key = key
        self.known = bucket
        self.unsent = 0.0

    def use(self, amount: float) -> None:
        """Take an amount here, and tell the store later."""
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
    """A key's limits in a store, and while that is away this replica's share of them; see `rates.Counted`."""

    def __init__(self, rates: Rates, key: str, store: RateStore) -> None:
        self._rates = rates
        self._store = store
        requests, tokens = request_bucket(rates), token_bucket(rates)
        self._requests = SharedBucket(f"quota:{key}:requests", requests) if requests else None
        self._tokens = SharedBucket(f"quota:{key}:tokens", tokens) if tokens else None
        self._buckets = (self._requests, self._tokens)
        # While the store is away: what is left of this replica's share, and what would be if nobody had asked.
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
        """Take tokens by what is known here, and tell the store in the background.

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
        """The store is away: the share of this replica, which begins with its share of what was missing."""
        if self._share is None:
            part = 1 / self._store.replicas
            missing = [part * bucket.known.missing(now=now) if bucket else 0.0 for bucket in self._buckets]
            self._share, self._unused = (Allowance(self._rates, share=part) for _ in range(2))
            for share in (self._share, self._unused):
                share.debit(*missing, now=now)
        return self._share

    def _together(self, now: float) -> None:
        """The store answers, so it learns what this replica gave meanwhile."""
        if self._share is None or self._unused is None:
            return
        for bucket, left, unused in zip(
            self._buckets, self._share.missing(now=now), self._unused.missing(now=now), strict=True
        ):
            if bucket:
                bucket.use(left - unused)
                self._store.settle(bucket)
        self._share = self._unused = None
