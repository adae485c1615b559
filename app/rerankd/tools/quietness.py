"""Notices whether other programs, or other virtual machines, took CPU time while something was measured."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import psutil

# More than this, and what was measured is not what the machine can do.
_MOST_OTHERS: Final = 0.10
_MOST_STOLEN: Final = 0.02
_MOST_SPREAD: Final = 1.15


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since the machine started, summed over the CPUs that this process may use; `own` is this process's."""

    total: float
    idle: float
    stolen: float
    own: float

    @classmethod
    def now(cls) -> Self:
        every = psutil.cpu_times(percpu=True)
        usable = [every[number] for number in _usable(len(every))]
        own = psutil.Process().cpu_times()
        return cls(
            # guests' time is part of `user`
            total=sum(sum(times[:8]) for times in usable),
            idle=sum(times.idle + getattr(times, "iowait", 0.0) for times in usable),
            stolen=sum(getattr(times, "steal", 0.0) for times in usable),
            own=own.user + own.system,
        )


@dataclass(frozen=True, slots=True)
class Interference:
    """Shares of the CPUs' time: what other programs used, and what the hypervisor gave to others."""

    others: float
    stolen: float

    @classmethod
    def between(cls, before: CpuTimes, after: CpuTimes) -> Self:
        total = max(after.total - before.total, 1e-9)
        stolen = after.stolen - before.stolen
        busy = total - (after.idle - before.idle) - stolen
        return cls(others=max(0.0, busy - (after.own - before.own)) / total, stolen=max(0.0, stolen) / total)


def spread(speeds: Sequence[float]) -> float:
    """How many times the fastest of repeated measurements is as fast as the slowest; the outermost two do not count
    where there are more than three.
    """
    ordered = sorted(speeds)
    inner = ordered[1:-1] if len(ordered) > 3 else ordered
    return inner[-1] / inner[0] if inner and inner[0] > 0 else 1.0


def disturbances(interference: Interference, noise: float) -> list[str]:
    """What made a measurement doubtful, in words; empty on a quiet machine."""
    found = []
    if interference.others > _MOST_OTHERS:
        found.append(f"other programs used {interference.others:.0%} of the CPUs")
    if interference.stolen > _MOST_STOLEN:
        found.append(f"other virtual machines took {interference.stolen:.0%} of the CPUs")
    if noise > _MOST_SPREAD:
        found.append(f"the same thing measured again was up to {noise:.2f} times as fast")
    return found


def _usable(count: int) -> Sequence[int]:
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        return range(count)
    return [number for number in allowed if number < count]
