"""Computes figures from a run's samples, and minimum, median and maximum over repetitions. Pure."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from rerankd.tools.benchmark.load import Run, Sample

_TIMING: Final = re.compile(r"(?:^|,)\s*([^;,\s]+)\s*;(?:[^,]*;)?\s*dur=(\d+(?:\.\d+)?)")

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One repetition. Latencies are of answered requests, in milliseconds; in an open loop from the intended arrival.

    Rates count what was answered within the window. `errors` counts what was not, by status or kind. `server_ms` are
    medians of the parts of Server-Timing; `lateness_ms` is how far behind its schedule the generator sent, 99th
    percentile; `generator_cores` how many CPU cores it used.
    """

    requests: int
    requests_per_s: float
    pairs_per_s: float
    offered_requests_per_s: float
    latency_ms: Mapping[str, float]
    errors: Mapping[str, int]
    server_ms: Mapping[str, float]
    lateness_ms: float
    generator_cores: float


@dataclass(frozen=True, slots=True)
class Spread:
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(min(values), float(np.median(values)), max(values))


def measure(run: Run) -> Measurement:
    """Figures of the requests that belong to the measured window: in a closed loop those that finished in it, in an
    open loop those that were to arrive in it.
    """
    seconds = run.closed - run.opened
    finished = [sample for sample in run.samples if run.opened <= sample.finished < run.closed]
    arrived = [sample for sample in run.samples if run.opened <= sample.intended < run.closed]
    counted = arrived if run.mode == "open" else finished
    done = [sample for sample in finished if sample.answered]
    answered = [sample for sample in counted if sample.answered]
    return Measurement(
        requests=len(counted),
        requests_per_s=len(done) / seconds,
        pairs_per_s=sum(sample.documents for sample in done) / seconds,
        offered_requests_per_s=len(arrived) / seconds,
        latency_ms=latencies_ms(answered),
        errors=dict(Counter(sample.outcome for sample in counted if not sample.answered)),
        server_ms=_server_ms(answered),
        lateness_ms=percentile([1000 * (sample.sent - sample.intended) for sample in counted], 99),
        generator_cores=run.cpu_s / seconds,
    )


def latencies_ms(samples: Sequence[Sample]) -> dict[str, float]:
    """Percentiles of milliseconds from the intended arrival to the last byte; NaN without samples."""
    latencies = [1000 * (sample.finished - sample.intended) for sample in samples]
    return {name: percentile(latencies, percent) for name, percent in PERCENTILES.items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated between the two nearest values; NaN if there are none."""
    return float(np.percentile(values, percent)) if values else float("nan")


def read_server_timing(header: bytes) -> dict[str, float]:
    """The parts of a Server-Timing header that have a duration, in milliseconds."""
    return {name: float(duration) for name, duration in _TIMING.findall(header.decode("latin-1"))}


def _server_ms(samples: Sequence[Sample]) -> dict[str, float]:
    headers = [read_server_timing(sample.server_timing) for sample in samples]
    names = dict.fromkeys(name for header in headers for name in header)
    return {name: percentile([header[name] for header in headers if name in header], 50) for name in names}
