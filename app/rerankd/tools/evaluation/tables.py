"""A report as tables, for the terminal and as Markdown, with the same content."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from rerankd.tools.evaluation.fusing import Choice
from rerankd.tools.evaluation.measures import MAIN_MEASURE
from rerankd.tools.evaluation.report import Report, Row, SetReport, Speed
from rerankd.tools.evaluation.significance import Difference, Interval

_Group = tuple[str, Sequence[Row]]
_Cells = Callable[[Row], list[str]]

_TOP_MEASURES = ("RR@10", "P@1")
_RECALLS = ("R@10", "R@100")
_QUALITY_HEAD = [MAIN_MEASURE, "95 %", "± base", "p", *_TOP_MEASURES]
_SPEED_HEAD = [*_RECALLS, "AUC", "p50 ms", "queries/s", "pairs/s"]
_SET_HEAD = ["set", "candidates", "judgements", "queries", "relevant from grade", "left out"]
_NOTHING = "-"


def terminal_tables(report: Report) -> list[Table]:
    """Tables for 80 columns: quality, speed and the depth curve."""
    groups = _groups(report)
    tables = [
        _terminal_table(_title(report), _QUALITY_HEAD, groups, _quality_cells),
        _terminal_table(_speed_title(report), _SPEED_HEAD, groups, _speed_cells),
    ]
    curve = _curve_lines(report)
    if curve:
        depths = _empty_table(f"{MAIN_MEASURE} by candidates reranked", curve[0])
        for line in curve[1:]:
            depths.add_row(*line)
        tables.append(depths)
    return tables


def _terminal_table(title: str, head: Sequence[str], groups: Sequence[_Group], cells: _Cells) -> Table:
    table = _empty_table(title, ["", *head])
    for name, rows in groups:
        table.add_row(f"[bold]{escape(name)}[/]")
        for row in rows:
            table.add_row(f" {escape(row.target)}", *cells(row))
    return table


def _empty_table(title: str, head: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def markdown(report: Report) -> str:
    head = ["set", "target", *_QUALITY_HEAD, *_SPEED_HEAD]
    lines = [
        [name, row.target, *_quality_cells(row), *_speed_cells(row)] for name, rows in _groups(report) for row in rows
    ]
    parts = [f"# Evaluation\n\n{_title(report)}.\n{_speed_title(report)}.", _markdown_table([head, *lines])]
    curve = _curve_lines(report)
    if curve:
        parts += [f"## {MAIN_MEASURE} by candidates reranked", _markdown_table(curve)]
    if report.fusions:
        parts += ["## Fusion", "\n".join(f"- {_fusion(choice)}" for choice in report.fusions)]
    parts += ["## Sets", _markdown_table([_SET_HEAD, *map(_set_line, report.sets)]), _details(report)]
    return "\n\n".join(parts) + "\n"


def notes(report: Report) -> list[str]:
    """Queries that were left out of the means or count as 0, per set; and the fusions that are recommended."""
    left_out = [f"{data_set.name}: {'; '.join(said)}" for data_set in report.sets if (said := _left_out(data_set))]
    return [*left_out, *map(_fusion, report.fusions)]


def _fusion(choice: Choice) -> str:
    change = f"{MAIN_MEASURE} {choice.alone:.4f} alone, {choice.held_out:.4f} fused, each half of the queries held out"
    return f"{choice.target}: {choice.line} ({change})"


def _title(report: Report) -> str:
    return f"Quality: best {report.depth} candidates reranked, compared with {report.baseline}"


def _speed_title(report: Report) -> str:
    return f"Speed: one query at a time, with up to {report.deepest} candidates"


def _groups(report: Report) -> list[_Group]:
    """Sets with the rows that say something: the first stage has no scores, and judged pairs need them."""
    groups: list[_Group] = [(_set_name(data_set), data_set.rows) for data_set in report.sets]
    means: list[_Group] = [(f"mean of {len(report.averaged)} sets", report.means)] if report.means else []
    return [(name, [row for row in rows if row.measures or row.speed]) for name, rows in groups + means]


def _set_name(data_set: SetReport) -> str:
    return f"{data_set.name} ({data_set.queries} queries)" if data_set.candidates else f"{data_set.name} (judged pairs)"


def _quality_cells(row: Row) -> list[str]:
    main, against = row.measures.get(MAIN_MEASURE), row.against_baseline.get(MAIN_MEASURE)
    return [
        _mean(main),
        _range(main),
        *_difference(against),
        *(_mean(row.measures.get(name)) for name in _TOP_MEASURES),
    ]


def _speed_cells(row: Row) -> list[str]:
    auc = _NOTHING if row.auc is None else f"{row.auc:.4f}"
    return [*(_mean(row.measures.get(name)) for name in _RECALLS), auc, *_speed(row.speed)]


def _speed(speed: Speed | None) -> list[str]:
    if speed is None:
        return [_NOTHING] * 3
    return [f"{speed.p50_ms:.1f}", f"{speed.queries_per_s:.1f}", f"{speed.pairs_per_s:.0f}"]


def _mean(interval: Interval | None) -> str:
    return f"{interval.mean:.4f}" if interval else _NOTHING


def _range(interval: Interval | None) -> str:
    return f"{interval.low:.3f}..{interval.high:.3f}" if interval else _NOTHING


def _difference(difference: Difference | None) -> list[str]:
    if difference is None:
        return [_NOTHING, _NOTHING]
    return [f"{difference.mean:+.4f}", "<.001" if difference.p < 0.001 else f"{difference.p:.3f}"]


def _curve_lines(report: Report) -> list[list[str]]:
    """A header and one line per target; empty without a depth curve."""
    rows = [row for row in report.summary if row.curve]
    if not rows:
        return []
    head = ["target", *(str(point.depth) for point in rows[0].curve)]
    return [head, *([row.target, *(f"{point.measures[MAIN_MEASURE]:.4f}" for point in row.curve)] for row in rows)]


def _set_line(data_set: SetReport) -> list[str]:
    left_out = "; ".join(_left_out(data_set)) or _NOTHING
    candidates = data_set.candidates or "judged pairs"
    return [data_set.name, candidates, data_set.judgements, str(data_set.queries), str(data_set.level), left_out]


def _left_out(data_set: SetReport) -> list[str]:
    counts = {
        "without a judgement left out": data_set.unjudged,
        "without a relevant document left out": data_set.without_relevant if data_set.candidates else 0,
        "without candidates count as 0": data_set.without_candidates,
    }
    refused = [f"{row.refused} queries refused by {row.target} count as 0" for row in data_set.rows if row.refused]
    return [*(f"{count} queries {what}" for what, count in counts.items() if count), *refused]


def _details(report: Report) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in report.details.items())


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])
