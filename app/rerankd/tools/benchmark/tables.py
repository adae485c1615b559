"""A report as tables, for the terminal and as Markdown, with the same content."""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rerankd.tools.benchmark.load import Mode
from rerankd.tools.benchmark.measurement import PERCENTILES, Spread
from rerankd.tools.benchmark.report import Point, Report

_TITLES: Final[Mapping[Mode, str]] = {
    "closed": "Closed loop: each client sends its next request when the last is answered",
    "open": "Open loop: Poisson arrivals; latency from the intended arrival",
}
_LOADS: Final[Mapping[Mode, str]] = {"closed": "clients", "open": "offered/s"}
_EXPLANATION = (
    "`cores` is how much CPU the load generator used, `late` how far behind its schedule it sent (99th percentile; "
    "open-loop latencies include it)."
)
_NOTHING = "-"


def terminal_tables(report: Report) -> list[Table]:
    """One table per mode, for 80 columns: medians of the repetitions, times in milliseconds."""
    tables = []
    for mode, points in _modes(report):
        head, *lines = _lines(mode, points, ranges=False)
        table = Table(title=_TITLES[mode], title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for name in head:
            table.add_column(name.replace(" (ms)", "\nms"), justify="right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        tables.append(table)
    return tables


def markdown(report: Report) -> str:
    """Medians of the repetitions, with minimum and maximum behind rates; then how it was measured."""
    parts = [f"# Load test\n\n{_EXPLANATION}"]
    for mode, points in _modes(report):
        parts += [f"## {_TITLES[mode]}", markdown_table(_lines(mode, points, ranges=True))]
        timings = _timing_lines(mode, points)
        if timings:
            parts += ["Server-Timing, medians:", markdown_table(timings)]
    parts.append("\n".join(f"- {name}: {value}" for name, value in report.details.items()))
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A header and rows with the same number of cells."""
    head, *rows = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


def _modes(report: Report) -> list[tuple[Mode, list[Point]]]:
    return [(mode, points) for mode in _TITLES if (points := report.of_mode(mode))]


def _lines(mode: Mode, points: Sequence[Point], *, ranges: bool) -> list[list[str]]:
    latencies = [f"{name} (ms)" for name in PERCENTILES]
    head = ["docs", _LOADS[mode], "req/s", "pairs/s", *latencies, "failed", "cores", *(["late (ms)"] if ranges else [])]
    return [head, *(_line(point, ranges=ranges) for point in points)]


def _line(point: Point, *, ranges: bool) -> list[str]:
    errors = ", ".join(f"{count} x {kind}" for kind, count in point.errors.items())
    return [
        point.documents,
        f"{point.load:.4g}" + (f" {point.utilization:.0%}" if point.utilization else ""),
        _rate(point.spread(lambda one: one.requests_per_s), ranges=ranges),
        _rate(point.spread(lambda one: one.pairs_per_s), ranges=ranges),
        *(_latency(point.latency_ms(name)) for name in PERCENTILES),
        errors or "0",
        f"{point.spread(lambda one: one.generator_cores).median:.2f}",
        *([_latency(point.spread(lambda one: one.lateness_ms))] if ranges else []),
    ]


def _rate(spread: Spread, *, ranges: bool) -> str:
    return f"{spread.median:,.1f}" + (f" ({spread.low:,.1f}..{spread.high:,.1f})" if ranges else "")


def _latency(spread: Spread) -> str:
    return _NOTHING if isnan(spread.median) else f"{spread.median:,.1f}"


def _timing_lines(mode: Mode, points: Sequence[Point]) -> list[list[str]]:
    names = list(dict.fromkeys(name for point in points for name in point.server_ms))
    if not names:
        return []
    rows = [
        [point.documents, f"{point.load:.4g}", *(f"{point.server_ms.get(name, 0):,.1f}" for name in names)]
        for point in points
    ]
    return [["docs", _LOADS[mode], *(f"{name} (ms)" for name in names)], *rows]
