"""How a request's work is scheduled among that of others, and what counts its cost."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Final, Protocol

# Priorities are Cohere's: 0 is served first, 999 last.
LAST_PRIORITY: Final = 999


class Meter(Protocol):
    """Counts what one request costs its caller, and enforces the caller's quota."""

    @property
    def limited(self) -> bool:
        """Whether the caller has a quota. Without one, nobody needs an estimate before the work."""

    async def reserve(self, tokens: int) -> None:
        """Reserve an estimated number of tokens before any work is done.

        Raises:
            RateLimited: the caller's quota is used up.
        """

    def read(self, tokens: int) -> None:
        """Count tokens that the model is about to read, or that the cache answered.

        Raises:
            RateLimited: they exceed what was reserved, and the caller's quota is used up.
        """

    def compute(self, tokens: int) -> None:
        """Count tokens that went to the engine."""

    def start_over(self) -> None:
        """Forget what was read and computed: the model could not answer, and another one does it again."""


class Unmetered:
    """Counts nothing: for the service's own work, and for callers without a quota."""

    limited = False

    async def reserve(self, tokens: int) -> None:
        pass

    def read(self, tokens: int) -> None:
        pass

    def compute(self, tokens: int) -> None:
        pass

    def start_over(self) -> None:
        pass


UNMETERED: Final = Unmetered()


def hold_uncounted(_size: int) -> None:
    """For the service's own work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a request's work is scheduled among that of others.

    `caller` owns the work (an API key's name). Among one caller's requests a lower `priority` goes first, 0 to 999.
    `urgent` work goes before everything that waits, and is never rejected. `background` work goes after everything, and
    is never rejected either: there must be little of it at a time, and a deadline. `deadline` is a moment on the clock
    of `time.perf_counter`. When it comes, a `partial` answer holds what is scored by then. Work that is not `divisible`
    cannot be answered in part. `meter` counts what the work costs. `hold` counts bytes that it keeps until there is an
    answer, beside those of the request; it raises Overloaded or RequestTooLarge where there is no room.
    """

    caller: str = ""
    priority: int = 0
    urgent: bool = False
    background: bool = False
    deadline: float = inf
    partial: bool = False
    divisible: bool = True
    meter: Meter = UNMETERED
    hold: Callable[[int], None] = hold_uncounted

    def undivided(self) -> "Terms":
        """The same terms for work that is only of use as a whole, such as an order."""
        return replace(self, partial=False, divisible=False)
