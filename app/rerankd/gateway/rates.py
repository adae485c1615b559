"""How much a key may ask for in a time. Pure: the caller of each function says what time it is.

What replicas count together is in `shared_rates`; it has the methods of `Allowance`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from rerankd.errors import RateLimited

_MINUTE_S = 60.0
# Computing a token costs about this many times as much as tokenizing it.
_TOKENIZED_PER_COMPUTED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a key may do; None: without limit."""

    requests_per_s: float | None = None
    tokens_per_min: int | None = None


@dataclass(slots=True)
class Bucket:
    """A token bucket (RFC 2697's single rate): fills steadily up to `capacity`, and may be overdrawn."""

    per_s: float
    capacity: float
    level: float = field(init=False)
    filled_at: float = -inf

    def __post_init__(self) -> None:
        self.level = self.capacity

    def wait_s(self, amount: float, *, now: float) -> float:
        """Seconds until the bucket holds `amount`; 0 when it does."""
        if self.filled_at > -inf:
            self.level = min(self.capacity, self.level + (now - self.filled_at) * self.per_s)
        self.filled_at = now
        return max(0.0, (amount - self.level) / self.per_s)

    def missing(self, *, now: float) -> float:
        """How much would fill it."""
        self.wait_s(0.0, now=now)
        return self.capacity - self.level

    def take(self, amount: float) -> None:
        self.level -= amount


def spare_s(buckets: Sequence[Bucket], *, now: float) -> float:
    """Seconds until each bucket is half full."""
    return max((bucket.wait_s(max(1.0, bucket.capacity / 2), now=now) for bucket in buckets), default=0.0)


class Counted(Protocol):
    """What a key may still ask for; see `Allowance` for what each method does and raises."""

    @property
    def limited(self) -> bool: ...

    async def ask(self, *, now: float) -> None: ...

    def spare_s(self, *, now: float) -> float: ...

    def check_tokens(self, *, now: float) -> None: ...

    async def reserve(self, tokens: int, *, by: object, now: float) -> None: ...

    def take(self, tokens: int, *, by: object, now: float) -> None: ...

    def give_back(self, tokens: int) -> None: ...


class Allowance:
    """What a key has used of its rates. Requests are counted when they come. Tokens are reserved before the work and
    settled after it, so that requests which run at the same time share one quota. Together they overdraw it by at most
    one request: the one that was admitted when a little was left.
    """

    def __init__(self, rates: Rates, *, share: float = 1.0) -> None:
        """`share`: the part of the rates that this replica gives."""
        self._requests = request_bucket(rates, share=share)
        self._tokens = token_bucket(rates, share=share)
        self._rates = rates
        self._overdrawn_by: object = None

    @property
    def limited(self) -> bool:
        """Whether tokens are counted."""
        return self._tokens is not None

    async def ask(self, *, now: float) -> None:
        """Count one request.

        Raises:
            RateLimited: the key has sent too many; `retry_after_s` says when it may ask again.
        """
        if self._requests:
            if wait_s := self._requests.wait_s(1.0, now=now):
                raise too_many_requests(self._rates, wait_s)
            self._requests.take(1.0)

    def spare_s(self, *, now: float) -> float:
        """Seconds until half of every quota is left: work that nobody waits for leaves the rest to requests."""
        return spare_s([bucket for bucket in (self._requests, self._tokens) if bucket], now=now)

    def check_tokens(self, *, now: float) -> None:
        """Reject a request at once if its tokens would be rejected later anyway.

        Raises:
            RateLimited: the key's quota is used up; `retry_after_s` says when it is not any more.
        """
        self.take(0, by=None, now=now)

    async def reserve(self, tokens: int, *, by: object, now: float) -> None:
        """As `take`, where other replicas count too."""
        self.take(tokens, by=by, now=now)

    def take(self, tokens: int, *, by: object, now: float) -> None:
        """Take tokens for a request. While anything is left, it gets all that it asks for. If that overdraws the quota,
        this request may take more, and others may not.

        Raises:
            RateLimited: nothing is left.
        """
        if self._tokens is None:
            return
        wait_s = self._tokens.wait_s(1.0, now=now)
        if wait_s and (by is None or by is not self._overdrawn_by):
            raise too_many_tokens(self._rates, wait_s)
        self._tokens.take(tokens)
        self._overdrawn_by = by if self._tokens.level < 1 else None

    def give_back(self, tokens: int) -> None:
        """Return tokens that were taken and not used; a negative number takes more."""
        if self._tokens:
            self._tokens.take(-tokens)

    def missing(self, *, now: float) -> tuple[float, float]:
        """How many requests and tokens would fill the buckets."""
        requests, tokens = (bucket.missing(now=now) if bucket else 0.0 for bucket in (self._requests, self._tokens))
        return requests, tokens

    def debit(self, requests: float, tokens: float, *, now: float) -> None:
        """Take these, whatever is left."""
        for bucket, amount in ((self._requests, requests), (self._tokens, tokens)):
            if bucket:
                bucket.missing(now=now)
                bucket.take(amount)


class RequestMeter:
    """Counts what one request costs a key. A request that succeeds costs what its answer's usage says. One that fails,
    is cancelled or is answered in part costs at least the tokens that went to the engine, and a fraction of those that
    were only tokenized.
    """

    def __init__(self, allowance: Counted, clock: Callable[[], float]) -> None:
        self._allowance = allowance
        self._clock = clock
        self._taken = 0
        self._read = 0
        self._computed = 0
        self._settled = False

    @property
    def limited(self) -> bool:
        return self._allowance.limited

    async def reserve(self, tokens: int) -> None:
        """Take an estimate of the request's tokens before any work is done.

        Raises:
            RateLimited: the quota is used up.
        """
        await self._allowance.reserve(tokens, by=self, now=self._clock())
        self._taken += tokens

    def read(self, tokens: int) -> None:
        """Count tokens that will be read, and take more if the estimate was too low.

        Raises:
            RateLimited: the quota is used up.
        """
        self._read += tokens
        more = self._read - self._taken
        if more > 0:
            self._allowance.take(more, by=self, now=self._clock())
            self._taken += more

    def compute(self, tokens: int) -> None:
        """Count tokens that went to the engine. A request that was cancelled may hear of some after it has ended: they
        are taken then.
        """
        before = self.spent
        self._computed += tokens
        if self._settled:
            self._allowance.give_back(before - self.spent)

    def start_over(self) -> None:
        """Forget what was read and computed, but keep what was reserved: another model answers instead."""
        self._read = self._computed = 0

    def settle(self, tokens: int) -> None:
        """The request succeeded and costs `tokens`; a partial answer costs at least what was computed for it."""
        self._settled = True
        self._allowance.give_back(self._taken - max(tokens, self.spent))

    def close(self) -> None:
        """The request has ended. If it did not succeed, it costs what was computed for it."""
        if not self._settled:
            self.settle(0)

    @property
    def spent(self) -> int:
        """What it costs if it fails now."""
        unread = max(0, self._read - self._computed)
        return self._computed + unread // _TOKENIZED_PER_COMPUTED


def request_bucket(rates: Rates, *, share: float = 1.0) -> Bucket | None:
    """Full, for one second's requests; None: they are not counted."""
    return _bucket(rates.requests_per_s, seconds=1.0, share=share)


def token_bucket(rates: Rates, *, share: float = 1.0) -> Bucket | None:
    """Full, for one minute's tokens; None: they are not counted."""
    return _bucket(rates.tokens_per_min, seconds=_MINUTE_S, share=share)


def too_many_requests(rates: Rates, wait_s: float) -> RateLimited:
    return RateLimited(f"this API key is limited to {rates.requests_per_s:g} requests a second", retry_after_s=wait_s)


def too_many_tokens(rates: Rates, wait_s: float) -> RateLimited:
    return RateLimited(f"this API key is limited to {rates.tokens_per_min} tokens a minute", retry_after_s=wait_s)


def _bucket(limit: float | None, *, seconds: float, share: float) -> Bucket | None:
    return None if limit is None else Bucket(limit * share / seconds, max(1.0, limit * share))
