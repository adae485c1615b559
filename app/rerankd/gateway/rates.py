"""How much a key may ask for in a time. Pure: the caller of each function says what time it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

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

    def take(self, amount: float) -> None:
        self.level -= amount


class Allowance:
    """What a key has used of its rates. Requests are counted when they come. Tokens are reserved before the work and
    settled after it, so that requests which run at the same time share one quota. Together they overdraw it by at most
    one request: the one that was admitted when a little was left.
    """

    def __init__(self, rates: Rates) -> None:
        self._requests = _bucket(rates.requests_per_s, seconds=1.0)
        self._tokens = _bucket(rates.tokens_per_min and rates.tokens_per_min / _MINUTE_S, seconds=_MINUTE_S)
        self._rates = rates
        self._overdrawn_by: object = None

    @property
    def limited(self) -> bool:
        """Whether tokens are counted."""
        return self._tokens is not None

    def ask(self, *, now: float) -> None:
        """Count one request.

        Raises:
            RateLimited: the key has sent too many; `retry_after_s` says when it may ask again.
        """
        if self._requests:
            if wait_s := self._requests.wait_s(1.0, now=now):
                limit_per_s = self._rates.requests_per_s
                raise RateLimited(f"this API key is limited to {limit_per_s:g} requests a second", retry_after_s=wait_s)
            self._requests.take(1.0)

    def check_tokens(self, *, now: float) -> None:
        """Reject a request at once if its tokens would be rejected later anyway.

        Raises:
            RateLimited: the key's quota is used up; `retry_after_s` says when it is not any more.
        """
        self.take(0, by=None, now=now)

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
            limit = self._rates.tokens_per_min
            raise RateLimited(f"this API key is limited to {limit} tokens a minute", retry_after_s=wait_s)
        self._tokens.take(tokens)
        self._overdrawn_by = by if self._tokens.level < 1 else None

    def give_back(self, tokens: int) -> None:
        """Return tokens that were taken and not used; a negative number takes more."""
        if self._tokens:
            self._tokens.take(-tokens)


class RequestMeter:
    """Counts what one request costs a key. A request that succeeds costs what its answer's usage says. One that fails,
    is cancelled or is answered in part costs at least the tokens that went to the engine, and a fraction of those that
    were only tokenized.
    """

    def __init__(self, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._allowance = allowance
        self._clock = clock
        self._taken = 0
        self._read = 0
        self._computed = 0
        self._settled = False

    @property
    def limited(self) -> bool:
        return self._allowance.limited

    def reserve(self, tokens: int) -> None:
        """Take an estimate of the request's tokens before any work is done.

        Raises:
            RateLimited: the quota is used up.
        """
        self._allowance.take(tokens, by=self, now=self._clock())
        self._taken += tokens

    def read(self, tokens: int) -> None:
        """Count tokens that will be read, and take more if the estimate was too low.

        Raises:
            RateLimited: the quota is used up.
        """
        self._read += tokens
        if self._read > self._taken:
            self.reserve(self._read - self._taken)

    def compute(self, tokens: int) -> None:
        self._computed += tokens

    def start_over(self) -> None:
        """Forget what was read and computed, but keep what was reserved: another model answers instead."""
        self._read = self._computed = 0

    def settle(self, tokens: int) -> None:
        """The request succeeded and costs `tokens`; a partial answer costs at least what was computed for it."""
        self._settled = True
        self._allowance.give_back(self._taken - max(tokens, self._spent()))

    def close(self) -> None:
        """The request has ended. If it did not succeed, it costs what was computed for it."""
        if not self._settled:
            self.settle(0)

    def _spent(self) -> int:
        unread = max(0, self._read - self._computed)
        return self._computed + unread // _TOKENIZED_PER_COMPUTED


def _bucket(per_s: float | None, *, seconds: float) -> Bucket | None:
    return None if per_s is None else Bucket(per_s, max(1.0, per_s * seconds))
