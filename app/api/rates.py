"""How much a key may ask for in a time. Pure: whoever asks says what time it is."""

from dataclasses import dataclass, field
from math import inf

from app.errors import RateLimited

_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a key may do; None: without limit."""

    requests_per_s: float | None = None
    tokens_per_min: int | None = None


@dataclass(slots=True)
class Bucket:
    """A token bucket (RFC 2697's single rate): fills steadily up to `capacity`, and may be overdrawn once."""

    per_s: float
    capacity: float
    level: float = field(init=False)
    filled_at: float = -inf

    def __post_init__(self) -> None:
        self.level = self.capacity

    def wait_s(self, amount: float, *, now: float) -> float:
        """Seconds until so much is there; 0 when it is."""
        if self.filled_at > -inf:
            self.level = min(self.capacity, self.level + (now - self.filled_at) * self.per_s)
        self.filled_at = now
        return max(0.0, (amount - self.level) / self.per_s)

    def take(self, amount: float) -> None:
        self.level -= amount


class Allowance:
    """What a key has used of its rates. Requests are counted when they come, tokens when the model has read them."""

    def __init__(self, rates: Rates) -> None:
        self._requests = _bucket(rates.requests_per_s, seconds=1.0)
        self._tokens = _bucket(rates.tokens_per_min and rates.tokens_per_min / _MINUTE_S, seconds=_MINUTE_S)
        self._rates = rates

    def ask(self, *, now: float) -> None:
        """Count one request.

        Raises:
            RateLimited: the key has asked for too much; `retry_after_s` says when it may ask again.
        """
        if self._tokens and (wait_s := self._tokens.wait_s(1.0, now=now)):
            limit = self._rates.tokens_per_min
            raise RateLimited(f"this API key may have {limit} tokens read in a minute", retry_after_s=wait_s)
        if self._requests:
            if wait_s := self._requests.wait_s(1.0, now=now):
                limit_per_s = self._rates.requests_per_s
                raise RateLimited(f"this API key may send {limit_per_s:g} requests a second", retry_after_s=wait_s)
            self._requests.take(1.0)

    def charge(self, tokens: int) -> None:
        """Count what the model has read for a request; that may be more than was left."""
        if self._tokens:
            self._tokens.take(tokens)


def _bucket(per_s: float | None, *, seconds: float) -> Bucket | None:
    return None if per_s is None else Bucket(per_s, max(1.0, per_s * seconds))
