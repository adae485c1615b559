"""Draws latency against offered load, and throughput against concurrency."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rerankd.tools.benchmark.report import Point, Report

_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5aa5", "#e08a1e", "#4a5759")
_PANEL_INCHES = (6.0, 4.5)


def draw(report: Report, path: Path) -> None:
    """Write a PNG with a panel for each mode that was run."""
    panels = [
        (draw_panel, points)
        for draw_panel, points in (
            (_draw_throughput, report.of_mode("closed")),
            (_draw_latency, report.of_mode("open")),
        )
        if points
    ]
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout="constrained", dpi=150)
    for axes, (draw_panel, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_panel(axes, points)
    figure.savefig(path, format="png")


def _draw_throughput(axes: Axes, points: Sequence[Point]) -> None:
    for (shape, of_shape), colour in zip(_by_shape(points), _COLOURS * len(points), strict=False):
        spreads = [point.spread(lambda one: one.pairs_per_s) for point in of_shape]
        medians = [spread.median for spread in spreads]
        below = [spread.median - spread.low for spread in spreads]
        above = [spread.high - spread.median for spread in spreads]
        clients = [point.load for point in of_shape]
        axes.errorbar(clients, medians, yerr=[below, above], fmt="o-", color=colour, capsize=3, label=shape)
    axes.set(xlabel="clients", ylabel="pairs/s", title="throughput", ylim=(0, None))
    _finish(axes)


def _draw_latency(axes: Axes, points: Sequence[Point]) -> None:
    for (shape, of_shape), colour in zip(_by_shape(points), _COLOURS * len(points), strict=False):
        rates = [point.load for point in of_shape]
        for name, style in (("p50", "o-"), ("p99", "s--")):
            medians = [point.latency_ms(name).median for point in of_shape]
            axes.plot(rates, medians, style, color=colour, markersize=4, label=f"{shape}, {name}")
    axes.set(xlabel="offered requests/s", ylabel="ms from the intended arrival", title="latency", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.legend(title="documents", fontsize=8, title_fontsize=8)


def _by_shape(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    shapes = dict.fromkeys(point.documents for point in points)
    return [
        (shape, sorted((point for point in points if point.documents == shape), key=lambda point: point.load))
        for shape in shapes
    ]
