"""The figures of a benchmark: one point per load, with its repetitions and their spread."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerankd.tools.benchmark.load import Mode
from rerankd.tools.benchmark.measurement import Measurement, Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One load: `load` is the number of clients of a closed loop, or the requests a second offered by an open one."""

    documents: str
    mode: Mode
    load: float
    utilization: float | None
    repetitions: Sequence[Measurement]

    def spread(self, figure: Callable[[Measurement], float]) -> Spread:
        """Minimum, median and maximum over the repetitions."""
        return Spread.of([figure(measurement) for measurement in self.repetitions])

    def latency_ms(self, percentile: str) -> Spread:
        """The latency at one of `PERCENTILES`; NaN without answers."""
        return self.spread(lambda measurement: measurement.latency_ms[percentile])

    @property
    def errors(self) -> dict[str, int]:
        """Requests that were not answered, by status or kind, over all repetitions."""
        kinds = sorted({kind for measurement in self.repetitions for kind in measurement.errors})
        return {kind: sum(one.errors.get(kind, 0) for one in self.repetitions) for kind in kinds}

    @property
    def server_ms(self) -> dict[str, float]:
        """Medians of the parts of Server-Timing."""
        names = dict.fromkeys(name for measurement in self.repetitions for name in measurement.server_ms)
        return {
            name: Spread.of([one.server_ms[name] for one in self.repetitions if name in one.server_ms]).median
            for name in names
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    points: Sequence[Point]
    details: Mapping[str, Any]

    @property
    def failures(self) -> int:
        return sum(sum(point.errors.values()) for point in self.points)

    def of_mode(self, mode: Mode) -> list[Point]:
        return [point for point in self.points if point.mode == mode]
