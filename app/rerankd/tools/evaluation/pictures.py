"""Draws quality against latency, and the depth curve, if any."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rerankd.tools.evaluation.measures import MAIN_MEASURE
from rerankd.tools.evaluation.report import Report, Row, main_value

_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5aa5", "#e08a1e", "#4a5759", "#00798c", "#9c6644")
_GREY = "#777777"
_PANEL_INCHES = (6.0, 4.5)


def draw(report: Report, path: Path) -> None:
    """Write a PNG."""
    rows = [row for row in report.summary if main_value(row)]
    has_curve = any(row.curve for row in rows)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * (2 if has_curve else 1), height), layout="constrained", dpi=150)
    panels = figure.subplots(1, 2 if has_curve else 1, squeeze=False)[0]
    figure.suptitle(_title(report), fontsize=10)
    _draw_latency(panels[0], rows)
    if has_curve:
        _draw_depths(panels[1], rows)
    figure.savefig(path, format="png")


def _title(report: Report) -> str:
    names = ", ".join(report.averaged)
    return f"mean of {len(report.averaged)} sets: {names}" if report.means else names


def _draw_latency(axes: Axes, rows: Sequence[Row]) -> None:
    for row, colour in _coloured(rows):
        quality = main_value(row)
        if quality is None:
            continue
        if row.speed is None:
            label = f"{row.target} {quality.mean:.3f}"
            axes.axhline(quality.mean, color=_GREY, linestyle="--", linewidth=1, label=label)
            continue
        spread = [[quality.mean - quality.low], [quality.high - quality.mean]]
        axes.errorbar(row.speed.p50_ms, quality.mean, yerr=spread, fmt="o", color=colour, capsize=3, label=row.target)
    pairs = max((row.speed.pairs for row in rows if row.speed), default=0)
    axes.set(xlabel=f"median latency of a query ({pairs:.0f} candidates), ms", ylabel=MAIN_MEASURE, xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.3, y=0.15)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best", fontsize=8)


def _draw_depths(axes: Axes, rows: Sequence[Row]) -> None:
    for row, colour in _coloured(rows):
        depths = [point.depth for point in row.curve]
        values = [point.measures[MAIN_MEASURE] for point in row.curve]
        style = "--" if row.speed is None else "o-"
        axes.plot(depths, values, style, color=_GREY if row.speed is None else colour, markersize=4, label=row.target)
    axes.set(xlabel="candidates reranked", ylabel=MAIN_MEASURE)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def _coloured(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """A target has the same colour in every panel."""
    return [(row, _COLOURS[number % len(_COLOURS)]) for number, row in enumerate(rows)]
