"""Decides how much of the event loop's time callers may take while another caller waits for its answer. Pure.

The event loop takes the CPU from the passes of all callers: what it does for one caller slows the others down.

1. Each caller has a token bucket of loop time. It fills at `part` of the time, and holds at most `_BURST_S`.
2. A caller whose bucket is empty is heavy. It waits until its bucket has filled up, but only while a caller that is not
   heavy awaits an answer. One caller alone, or several heavy ones, never wait. A request of which the rest has not
   arrived awaits nothing: else a caller could hold others back by never sending it.
3. Heavy callers divide `part` among themselves.

The Linux scheduler limits groups of processes in this way (Turner, Rao and Rao, "CPU bandwidth control for CFS", Linux
Symposium 2010).
"""

from dataclasses import dataclass
from typing import Final

_BURST_S: Final = 0.02
# What a caller may owe of the time when no other one waited.
_DEBT_S: Final = 0.005
# Shorter waits are not worth their timers.
_LEAST_WAIT_S: Final = 0.001


@dataclass(slots=True)
class _Caller:
    level_s: float
    filled_at: float
    requests: int = 0
    awaited: int = 0


class LoopShare:
    """The loop time that callers have left. All times are seconds."""

    def __init__(self, part: float) -> None:
        self._part = part
        self._callers: dict[str, _Caller] = {}
        self._present = 0

    @property
    def is_shared(self) -> bool:
        """Whether several callers have requests here."""
        return self._present > 1

    def enter(self, caller: str, *, now: float) -> None:
        """A request of the caller has begun."""
        account = self._callers.setdefault(caller, _Caller(level_s=_BURST_S, filled_at=now))
        self._present += not account.requests
        account.requests += 1

    def arrive(self, caller: str) -> None:
        """All of a request that has begun is here; its answer is awaited."""
        self._callers[caller].awaited += 1

    def leave(self, caller: str, *, arrived: bool) -> None:
        """A request of the caller has ended."""
        account = self._callers[caller]
        account.requests -= 1
        account.awaited -= arrived
        self._present -= not account.requests

    def spend(self, caller: str, seconds: float, *, now: float) -> None:
        """Count loop time of a caller; a negative number gives some back."""
        account = self._callers[caller]
        before = self._level_s(account, now)
        account.level_s = before - seconds
        if account.level_s < -_DEBT_S and not self._is_contended(account, now):
            account.level_s = max(account.level_s, min(before, -_DEBT_S))

    def wait_s(self, caller: str, *, now: float) -> float:
        """How long the caller's requests should leave the loop to others; 0: they may go on."""
        account = self._callers[caller]
        level_s = self._level_s(account, now)
        if level_s >= 0 or not self._is_contended(account, now):
            return 0.0
        heavy = sum(other.requests > 0 and self._level_s(other, now) < 0 for other in self._callers.values())
        return max(_LEAST_WAIT_S, -level_s / self._part * heavy)

    def _is_contended(self, account: _Caller, now: float) -> bool:
        return any(
            other.awaited and other is not account and self._level_s(other, now) >= 0
            for other in self._callers.values()
        )

    def _level_s(self, account: _Caller, now: float) -> float:
        account.level_s = min(_BURST_S, account.level_s + (now - account.filled_at) * self._part)
        account.filled_at = now
        return account.level_s
