"""Detects whether other programs or virtual machines used the CPUs during a measurement."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import psutil

# With more than this, a measurement does not show what the machine can do.
_MOST_OTHERS: Final = 0.10
_MOST_STOLEN: Final = 0.02
_MOST_SPREAD: Final = 1.15


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """CPU seconds since boot, over the CPUs that this process may use. `own` are those of this process."""

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
    """Shares of CPU time: used by other programs, and given to others by the hypervisor."""

    others: float
    stolen: float

    @classmethod
    def between(cls, before: CpuTimes, after: CpuTimes) -> Self:
        total = max(after.total - before.total, 1e-9)
        stolen = after.stolen - before.stolen
        busy = total - (after.idle - before.idle) - stolen
        return cls(others=max(0.0, busy - (after.own - before.own)) / total, stolen=max(0.0, stolen) / total)


def spread(speeds: Sequence[float]) -> float:
    """The ratio of the fastest and the slowest repetition, without the two extremes if there are more than three."""
    ordered = sorted(speeds)
    inner = ordered[1:-1] if len(ordered) > 3 else ordered
    return inner[-1] / inner[0] if inner and inner[0] > 0 else 1.0


def disturbances(interference: Interference, noise: float) -> list[str]:
    """The reasons to doubt a measurement; empty on a quiet machine."""
    found = []
    if interference.others > _MOST_OTHERS:
        found.append(f"other programs used {interference.others:.0%} of the CPUs")
    if interference.stolen > _MOST_STOLEN:
        found.append(f"other virtual machines took {interference.stolen:.0%} of the CPUs")
    if noise > _MOST_SPREAD:
        found.append(f"repeated measurements differed by up to a factor of {noise:.2f}")
    return found


def _usable(count: int) -> Sequence[int]:
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        return range(count)
    return [number for number in allowed if number < count]
