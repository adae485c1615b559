"""Which requests count where, checked on samples whose figures are known by hand."""

import math
from typing import Any

import pytest

from rerankd.tools.benchmark.load import Mode, Run, Sample
from rerankd.tools.benchmark.measurement import Spread, measure, read_server_timing


def _sample(intended: float, latency_s: float, *, late_s: float = 0.0, **fields: Any) -> Sample:
    return Sample(
        intended=intended,
        sent=intended + late_s,
        finished=intended + latency_s,
        **{"documents": 10, "outcome": "200", **fields},
    )


def _run(mode: Mode, *samples: Sample) -> Run:
    """A window from 10 to 20."""
    return Run(mode=mode, samples=samples, opened=10.0, closed=20.0, cpu_s=0.5)


_WARMING = _sample(5, 1)
_INTO_THE_WINDOW = _sample(9, 2)
_WITHIN = _sample(12, 1)
_OUT_OF_THE_WINDOW = _sample(19, 4)


def test_a_closed_loop_counts_what_finished_in_the_window() -> None:
    measured = measure(_run("closed", _WARMING, _INTO_THE_WINDOW, _WITHIN, _OUT_OF_THE_WINDOW))
    assert measured.requests == 2
    assert measured.latency_ms["max"] == pytest.approx(2000)
    assert measured.requests_per_s == pytest.approx(0.2)
    assert measured.pairs_per_s == pytest.approx(2.0)


def test_an_open_loop_counts_what_was_to_arrive_in_the_window() -> None:
    measured = measure(_run("open", _WARMING, _INTO_THE_WINDOW, _WITHIN, _OUT_OF_THE_WINDOW))
    assert measured.requests == 2
    assert measured.latency_ms["max"] == pytest.approx(4000)
    assert measured.offered_requests_per_s == pytest.approx(0.2)
    assert measured.requests_per_s == pytest.approx(0.2), "answers within the window, whenever they were asked for"


def test_latency_counts_from_the_intended_arrival_and_lateness_is_told() -> None:
    measured = measure(_run("open", _sample(11, 3.0, late_s=2.0)))
    assert measured.latency_ms["p50"] == pytest.approx(3000)
    assert measured.lateness_ms == pytest.approx(2000)


def test_failures_are_counted_by_kind_and_are_in_no_latency() -> None:
    failed = [_sample(11, 0.001, outcome=kind) for kind in ("429", "429", "timeout")]
    measured = measure(_run("closed", _WITHIN, *failed))
    assert measured.errors == {"429": 2, "timeout": 1}
    assert measured.latency_ms["p50"] == pytest.approx(1000)
    assert measured.requests_per_s == pytest.approx(0.1)


def test_nothing_answered_is_no_number_rather_than_a_fast_server() -> None:
    measured = measure(_run("closed", _sample(11, 0.001, outcome="503")))
    assert math.isnan(measured.latency_ms["p99"])
    assert measured.pairs_per_s == 0


def test_percentiles_interpolate() -> None:
    samples = [_sample(11, latency / 1000) for latency in range(1, 101)]
    latencies = measure(_run("closed", *samples)).latency_ms
    assert latencies["p50"] == pytest.approx(50.5)
    assert latencies["p99"] == pytest.approx(99.01)
    assert latencies["max"] == pytest.approx(100)


def test_server_timings_are_medians_by_part() -> None:
    headers = [b"queue;dur=1.5, total;dur=4", b"queue;dur=2.5, total;dur=8", b"total;dur=6"]
    samples = [_sample(11, 1, server_timing=header) for header in headers]
    assert measure(_run("closed", *samples)).server_ms == {"queue": 2.0, "total": 6.0}


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        (b"", {}),
        (b"miss, db;dur=53.2, app;dur=4;desc=x", {"db": 53.2, "app": 4.0}),
        (b'cache;desc="Cache Read";dur=1', {"cache": 1.0}),
        (b"total;dur=soon", {}),
    ],
)
def test_server_timing_headers_of_others_are_read_as_well(header: bytes, parts: dict[str, float]) -> None:
    assert read_server_timing(header) == parts


def test_generator_cores_are_cpu_time_over_the_window() -> None:
    assert measure(_run("closed", _WITHIN)).generator_cores == pytest.approx(0.05)


def test_a_spread_is_minimum_median_maximum() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(1.0, 3.0, 10.0)
