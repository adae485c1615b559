"""`rerankd calibrate`: what a model's scores mean as probabilities, and how sure it is of its order."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rerankd.cli.app import PROGRESS_COLUMNS, RegistryOption, interruptible, log_warnings_only, needing_extra
from rerankd.config.settings import read_settings
from rerankd.scorers.calibration import CALIBRATION_FILE
from rerankd.tools.outputs import check_files

if TYPE_CHECKING:
    from rerankd.tools.calibration.calibrating import Answers, Quality
    from rerankd.tools.evaluation.datasets import DataSet
    from rerankd.tools.evaluation.targets import Target

_STATE = ".state.jsonl"


def calibrate(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DATA_FOLDER", help="Judged questions to fit: see docs/evaluation.md.")
    ],
    *,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="Judged questions to measure on; default: half of the others.", metavar="FOLDER"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model of the registry; default: its default one.")] = None,
    method: Annotated[
        Literal["platt", "isotonic"], typer.Option(help="A logistic curve, or steps: needs many relevant pairs.")
    ] = "platt",
    measure: Annotated[
        Literal["nDCG@10", "AP", "RR"], typer.Option(help="What confidence predicts of an order.")
    ] = "nDCG@10",
    size: Annotated[int, typer.Option(min=1, help="How many of the best scores confidence looks at.")] = 20,
    abstain: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of these questions whose answers would abstain.")
    ] = 0.1,
    depth: Annotated[int, typer.Option(min=1, help="Candidates per query.")] = 100,
    queries: Annotated[int | None, typer.Option(min=1, help="Only the first judged queries of each set.")] = None,
    run: Annotated[
        str | None, typer.Option(help="The run: NAME of run.NAME.tsv, or `candidates`.", metavar="NAME")
    ] = None,
    qrels: Annotated[str | None, typer.Option(help="The judgements to fit: NAME of qrels.NAME.tsv.")] = None,
    level: Annotated[
        list[str] | None, typer.Option("--relevance-level", help="The grade from which a document is relevant.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The calibration; beside the model's weights it is used by itself.", metavar="FILE")
    ] = Path(CALIBRATION_FILE),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run had scored.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Fit a map from scores to probabilities of relevance, and confidence, to judged questions."""
    settings = read_settings(registry=registry)
    log_warnings_only()
    check_files({"--output": output})
    with needing_extra("eval", command="calibrate"):
        from rerankd.tools.calibration import calibrating as cal  # noqa: PLC0415 - a service needs none of it
        from rerankd.tools.evaluation import evaluation as ev  # noqa: PLC0415 - as above
        from rerankd.tools.evaluation.in_process import InProcess  # noqa: PLC0415 - as above
    options = ev.SetOptions(
        folders=folders, run=run, qrels=qrels, corpus=None, topics=None, queries=queries, levels=level or ()
    )
    fitted = ev.read_sets(options, depth=depth)
    if held_out:
        others = ev.read_sets(replace(options, folders=held_out, qrels=None), depth=depth)
    else:
        fitted, others = [one.half(0) for one in fitted], [one.half(1) for one in fitted]
    target = InProcess(settings, model)
    with interruptible("the same command continues from there"):
        answers = asyncio.run(_score(target, [*fitted, *others], output.with_suffix(_STATE), fresh=fresh))
    wanted = cal.Wanted(method=method, measure=measure, size=size, abstain=abstain)
    details = {"model": target.name, "fitted to": [one.name for one in fitted], "depth": depth}
    calibration = cal.calibrate(fitted, answers, wanted, details=details)
    output.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
    console = Console()
    judged = [cal.judge(one, answers, calibration, measure=measure) for one in (*fitted, *others)]
    for table in _tables(judged, measure=measure):
        console.print(table)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)


async def _score(target: "Target", data_sets: "Sequence[DataSet]", state: Path, *, fresh: bool) -> "Answers":
    """The model's answers to all questions; those of an interrupted run are kept in `state`."""
    from rerankd.tools.evaluation.journal import Journal  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.evaluation.scoring import plan_scoring  # noqa: PLC0415 - as above

    with Journal(state, fresh=fresh) as journal:
        scoring = await plan_scoring([target], data_sets, journal, max_tokens_per_doc=None)
        with Progress(*PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
            bar = progress.add_task("starting", total=scoring.total, completed=scoring.done, speed="")
            async for work in scoring.run():
                progress.update(bar, advance=1, description=work.data_set.name)
        return scoring.rankings()[target.name]


def _tables(judged: "Sequence[Quality]", *, measure: str) -> list[Table]:
    """How far probabilities are from the truth, and how well confidence tells good orders from bad ones."""
    errors = _table("Probabilities", ["pairs", "relevant", "ECE", "calibrated", "Brier", "calibrated"])
    methods = list(judged[0].nauc)
    confidence = _table(f"nAUC of confidence, by {measure}", [*methods, "abstained"])
    for one in judged:
        numbers = one.error_before, one.error_after, one.brier_before, one.brier_after
        errors.add_row(one.name, str(one.pairs), str(one.relevant), *(f"{number:.3f}" for number in numbers))
        areas = (f"{one.nauc[method]:.2f}" if method in one.nauc else "-" for method in methods)
        confidence.add_row(one.name, *areas, f"{one.abstained:.0%}")
    return [errors, confidence] if methods else [errors]


def _table(title: str, head: "Sequence[str]") -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("", overflow="fold")
    for name in head:
        table.add_column(name, justify="right", no_wrap=True)
    return table
