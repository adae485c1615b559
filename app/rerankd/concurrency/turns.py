"""Decides whose turn it is where callers share something beside the engine: the threads that tokenize, the parsing of
large bodies, the writing of large answers. Pure: no clock, no thread and no I/O.

1. Urgent turns go first.
2. Next is the caller that had least so far (start-time fair queueing, Goyal et al. 1996): a turn costs its caller as
   many units (characters, bytes, results) as it is long. A caller that was away may catch up by `_CREDIT`.
3. Of one caller's requests, those with less left go first, a factor of four apart. One turn in `_TURNS` belongs to the
   oldest, so that nothing starves.
4. A caller holds at most `per_caller` places at a time, so that the others find one free.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from math import inf

_TURNS = 4
_CREDIT = 500_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Whose turn is asked for, what it costs, and how much of its request is `left`, this turn included."""

    caller: str = ""
    cost: int = 1
    left: int = 1
    urgent: bool = False


@dataclass(slots=True)
class _Caller:
    """One caller's turns: oldest first in `shares`, and by what is left of their requests in `ranks`."""

    served: float
    turn: int = 0
    held: int = 0
    shares: dict[int, Share] = field(default_factory=dict)
    ranks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def oldest(self) -> int:
        """The number of its oldest turn; it must have one."""
        return next(iter(self.shares))

    @property
    def idle(self) -> bool:
        return not (self.shares or self.held)

    def add(self, number: int, share: Share) -> None:
        self.shares[number] = share
        insort(self.ranks, _rank(number, share))

    def remove(self, number: int) -> Share:
        share = self.shares.pop(number)
        del self.ranks[bisect_left(self.ranks, _rank(number, share))]
        return share

    def choose(self) -> int:
        self.turn += 1
        return self.oldest if self.turn % _TURNS == 0 else self.ranks[0][1]


class TurnQueue:
    """`places` turns are taken at a time; the rest wait."""

    def __init__(self, places: int, *, per_caller: int | None = None) -> None:
        self._places = places
        self._per_caller = places if per_caller is None else per_caller
        self._callers: dict[str, _Caller] = {}
        self._urgent = _Caller(served=-inf)
        self._waiting: dict[int, _Caller] = {}
        self._holders: dict[int, _Caller] = {}
        self._floor = 0.0

    @property
    def known_callers(self) -> int:
        """How many callers something is remembered of: none once nothing waits and no place is taken."""
        return len(self._callers)

    @property
    def idle(self) -> bool:
        """Whether no turn is taken or asked for."""
        return not (self._waiting or self._holders)

    def add(self, number: int, share: Share) -> None:
        """Ask for a turn."""
        caller = self._urgent if share.urgent else self._caller(share.caller)
        caller.add(number, share)
        self._waiting[number] = caller

    def withdraw(self, number: int) -> None:
        """Ask no longer; nothing happens to a turn that was given."""
        caller = self._waiting.pop(number, None)
        if caller is not None:
            caller.remove(number)
            self._forget()

    def leave(self, number: int) -> None:
        """Give a place back; nothing happens if it was given back before."""
        caller = self._holders.pop(number, None)
        if caller is not None:
            caller.held -= 1
            self._forget()

    def next(self) -> int | None:
        """Give the next turn, if there is a place and somebody who may have it."""
        if len(self._holders) >= self._places or not self._waiting:
            return None
        caller = self._next_caller()
        if caller is None:
            return None
        number = caller.choose()
        share = caller.remove(number)
        del self._waiting[number]
        caller.served += share.cost
        caller.held += 1
        self._holders[number] = caller
        return number

    def _next_caller(self) -> _Caller | None:
        if self._urgent.shares:
            return self._urgent
        asking = [caller for caller in self._callers.values() if caller.shares]
        self._floor = max(self._floor, min(caller.served for caller in asking))
        free = [caller for caller in asking if caller.held < self._per_caller]
        return min(free, key=lambda caller: (caller.served, caller.oldest), default=None)

    def _caller(self, name: str) -> _Caller:
        """The caller, brought forward if it was away, so that it has not more than its credit to catch up."""
        caller = self._callers.setdefault(name, _Caller(served=-inf))
        if caller.idle:
            caller.served = max(caller.served, self._floor - _CREDIT)
            caller.turn = 0
        return caller

    def _forget(self) -> None:
        """Drop idle callers that have regained their full credit, and all of them when nobody is left to share with."""
        if self.idle:
            self._callers.clear()
            self._floor = 0.0
            return
        least = self._floor - _CREDIT
        for name in [name for name, caller in self._callers.items() if caller.idle and caller.served <= least]:
            del self._callers[name]


def _rank(number: int, share: Share) -> tuple[int, int]:
    """The class of size (2 to 8 units, to 32, to 128, ...), and the order of arrival."""
    return share.left.bit_length() // 2, number
