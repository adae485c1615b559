"""`rerankd eval`: quality on judged data."""

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from rerankd.cli.app import (
    PROGRESS_COLUMNS,
    RegistryOption,
    interruptible,
    log_warnings_only,
    needing_extra,
)
from rerankd.config.settings import read_settings
from rerankd.tools.evaluation import arguments

if TYPE_CHECKING:
    from rerankd.tools.evaluation.evaluation import Evaluation, Outputs


def evaluate(
    folders: arguments.Folders = None,
    *,
    model: arguments.Models = None,
    url: arguments.Urls = None,
    biencoder: arguments.BiEncoders = None,
    baseline: arguments.Baseline = "first-stage",
    depth: arguments.Depth = 100,
    depths: arguments.DepthCurve = "",
    max_tokens_per_doc: arguments.MaxTokens = None,
    queries: arguments.Queries = None,
    run: arguments.Run = None,
    qrels: arguments.Qrels = None,
    corpus: arguments.Corpus = None,
    topics: arguments.Topics = None,
    level: arguments.Levels = None,
    deadline: arguments.Deadlines = "",
    fuse: arguments.Fuse = False,
    output: arguments.Output = None,
    markdown: arguments.Markdown = None,
    plot: arguments.Plot = None,
    fresh: arguments.Fresh = False,
    api_key: arguments.ApiKey = None,
    registry: RegistryOption = None,
) -> None:
    """Measure models, or a server, on judged data: quality, significance, speed."""
    settings = read_settings(registry=registry)
    log_warnings_only()
    with needing_extra("eval"):
        from rerankd.tools.evaluation import evaluation as ev  # noqa: PLC0415 - a service needs none of it

        outputs = ev.Outputs(json=output, markdown=markdown, plot=plot)
        outputs.prepare()
    sets = ev.SetOptions(
        folders=folders or (), run=run, qrels=qrels, corpus=corpus, topics=topics, queries=queries, levels=level or ()
    )
    targets = ev.TargetOptions(
        models=model or (), urls=url or (), biencoders=biencoder or (), api_key=api_key, deadlines=deadline
    )
    comparison = ev.Comparison(
        baseline=baseline, depth=depth, depths=depths, max_tokens_per_doc=max_tokens_per_doc, fuse=fuse
    )
    evaluation = ev.prepare(sets, targets, comparison, settings)
    how_to_continue = (
        "the same command continues from there" if output else "with --output the same command could continue"
    )
    with interruptible(how_to_continue):
        asyncio.run(_evaluate(evaluation, outputs, fresh=fresh))


async def _evaluate(evaluation: "Evaluation", outputs: "Outputs", *, fresh: bool) -> None:
    """Score with a progress bar, save the report, and print it."""
    from rerankd.tools.evaluation.evaluation import save_report  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.evaluation.tables import notes, terminal_tables  # noqa: PLC0415

    with outputs.journal(fresh=fresh) as journal:
        scoring = await evaluation.scoring(journal)
        pairs, started = 0, perf_counter()
        with Progress(*PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
            bar = progress.add_task("starting", total=scoring.total, completed=scoring.done, speed="")
            async for work in scoring.run():
                pairs += len(work.question.document_ids)
                speed = f"{pairs / (perf_counter() - started):.0f} pairs/s"
                progress.update(bar, advance=1, description=f"{work.target.name} on {work.data_set.name}", speed=speed)
            progress.update(bar, description="measuring")
            report = evaluation.report(scoring)
    save_report(report, outputs)
    console = Console()
    for table in terminal_tables(report):
        console.print(table)
    for note in notes(report):
        console.print(note, highlight=False)
