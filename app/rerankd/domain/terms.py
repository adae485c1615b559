"""How a request's work stands among that of others, and what counts its cost."""

from dataclasses import dataclass, replace
from math import inf
from typing import Final, Protocol

# Priorities are Cohere's: 0 is served first, 999 last.
LAST_PRIORITY: Final = 999


class Meter(Protocol):
    """Counts what one request costs its caller, and says when the caller may not have so much."""

    @property
    def limited(self) -> bool:
        """Whether the caller has a quota: else nothing need be known before the work."""

    def reserve(self, tokens: int) -> None:
        """Set about so many tokens aside before any work is done.

        Raises:
            RateLimited: the caller's quota is used up.
        """

    def read(self, tokens: int) -> None:
        """So many tokens are known to be read, by the model or out of the cache; called before the model reads them.

        Raises:
            RateLimited: that is more than was set aside, and the caller's quota is used up.
        """

    def compute(self, tokens: int) -> None:
        """So many tokens went to the engine."""


class Unmetered:
    """Counts nothing: work of nobody's, or of a caller without a quota."""

    limited = False

    def reserve(self, tokens: int) -> None:
        pass

    def read(self, tokens: int) -> None:
        pass

    def compute(self, tokens: int) -> None:
        pass


UNMETERED: Final = Unmetered()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a request's work stands among that of others.

    `caller` names whose work it is (an API key's name). Of one caller's requests those with the lower `priority` go
    first, 0 to 999; `urgent` work goes before everything that waits and is never refused. `deadline` is a moment on the
    clock of `time.perf_counter`; when it comes, a `partial` answer holds what is scored by then. Where the work is not
    `divisible` nobody can ask for one: half of it says nothing. `meter` counts what the work costs.
    """

    caller: str = ""
    priority: int = 0
    urgent: bool = False
    deadline: float = inf
    partial: bool = False
    divisible: bool = True
    meter: Meter = UNMETERED

    def undivided(self) -> "Terms":
        """The same for work that is only of use as a whole, such as an order."""
        return replace(self, partial=False, divisible=False)
