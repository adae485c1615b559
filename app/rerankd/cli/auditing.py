"""`rerankd audit`: how far a model's order moves when texts change."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rerankd.cli.app import PROGRESS_COLUMNS, RegistryOption, interruptible, log_warnings_only, needing_extra
from rerankd.config.settings import read_settings
from rerankd.tools.outputs import check_files

if TYPE_CHECKING:
    from rerankd.tools.auditing.auditing import Audit
    from rerankd.tools.auditing.synonyms import Synonyms
    from rerankd.tools.evaluation.datasets import DataSet
    from rerankd.tools.evaluation.in_process import InProcess


def audit(
    folders: Annotated[list[Path], typer.Argument(metavar="DATA_FOLDER", help="Judged questions: docs/evaluation.md.")],
    *,
    model: Annotated[str | None, typer.Option(help="A model of the registry; default: its default one.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="Candidates per query.")] = 20,
    queries: Annotated[int | None, typer.Option(min=1, help="Only the first judged queries of each set.")] = 50,
    level: Annotated[
        list[str] | None, typer.Option("--relevance-level", help="The grade from which a document is relevant.")
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(help="Words and lists of their synonyms (JSON); default: some English.", metavar="FILE"),
    ] = None,
    certify: Annotated[
        int, typer.Option(min=0, help="Certify the top K with this many samples of each document; 0: do not.")
    ] = 0,
    k: Annotated[int, typer.Option(min=1, help="The K of the certified top K.")] = 1,
    words: Annotated[int, typer.Option(min=1, help="Substitutions that an attacker may make in a document.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed gives the same texts.")] = 13,
    output: Annotated[
        Path | None, typer.Option(help="The audit as JSON; an interrupted run can then continue.", metavar="FILE")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="The audit as Markdown.", metavar="FILE")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run had scored.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Audit a model: typos, synonyms, paraphrases, stuffed and injected texts, and a certified top K."""
    settings = read_settings(registry=registry)
    log_warnings_only()
    check_files({"--output": output, "--markdown": markdown})
    with needing_extra("eval", command="audit"):
        from rerankd.tools.auditing import auditing as au  # noqa: PLC0415 - a service needs none of it
        from rerankd.tools.auditing import tables  # noqa: PLC0415 - as above
        from rerankd.tools.auditing.synonyms import Synonyms  # noqa: PLC0415
        from rerankd.tools.evaluation.evaluation import SetOptions, read_sets  # noqa: PLC0415
        from rerankd.tools.evaluation.in_process import InProcess  # noqa: PLC0415
    options = SetOptions(
        folders=folders, run=None, qrels=None, corpus=None, topics=None, queries=queries, levels=level or ()
    )
    data_sets, table = read_sets(options, depth=depth), Synonyms.read(synonyms)
    target = InProcess(settings, model)
    state = output.with_suffix(".state.jsonl") if output else None
    how_to_continue = "the same command continues from there" if output else "with --output it could continue"
    with interruptible(how_to_continue):
        found = asyncio.run(_audit(target, data_sets, table, state, seed=seed, fresh=fresh))
        if certify:
            certified = asyncio.run(_certify(target, data_sets, table, k=k, words=words, samples=certify, seed=seed))
            found = au.with_certificates(found, certified, k=k, words=words, samples=certify)
    if output is not None:
        output.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if markdown is not None:
        markdown.write_text(tables.markdown(found), encoding="utf-8")
    _print(found, title=f"Audit of {target.name}")


async def _audit(
    target: "InProcess",
    data_sets: "list[DataSet]",
    synonyms: "Synonyms",
    state: Path | None,
    *,
    seed: int,
    fresh: bool,
) -> "Audit":
    from rerankd.tools.auditing import auditing as au  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.auditing.perturbations import perturbations  # noqa: PLC0415 - as above
    from rerankd.tools.evaluation.journal import Journal  # noqa: PLC0415

    wanted = perturbations(synonyms)
    details = {
        "model": target.name,
        "sets": ", ".join(f"{one.name} ({len(one.ranked)} queries)" for one in data_sets),
        "candidates": max(len(question.document_ids) for one in data_sets for question in one.questions),
        "seed": seed,
    }
    with Journal(state, fresh=fresh) as journal:
        scoring = await au.plan(target, data_sets, wanted, journal, seed=seed)
        with Progress(*PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
            bar = progress.add_task("starting", total=scoring.total, completed=scoring.done, speed="")
            async for work in scoring.run():
                progress.update(bar, advance=1, description=work.data_set.name)
        return au.audit(scoring, target, data_sets, wanted, seed=seed, details=details)


async def _certify(
    target: "InProcess",
    data_sets: "list[DataSet]",
    synonyms: "Synonyms",
    *,
    k: int,
    words: int,
    samples: int,
    seed: int,
) -> list[bool]:
    from rerankd.tools.auditing.auditing import certify  # noqa: PLC0415 - a service needs none of it

    certified: list[bool] = []
    with Progress(*PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
        bar = progress.add_task("certifying", total=sum(len(one.ranked) for one in data_sets), speed="")
        async with target.opened() as ask:
            async for one in certify(ask, data_sets, synonyms, k=k, words=words, samples=samples, seed=seed):
                certified.append(one)
                progress.update(bar, advance=1)
    return certified


def _print(found: "Audit", *, title: str) -> None:
    from rerankd.tools.auditing import tables  # noqa: PLC0415 - a service needs none of it

    console = Console()
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for place, name in enumerate(tables.HEAD):
        table.add_column(name, justify="left" if place < 2 else "right", overflow="fold")
    for line in tables.lines(found):
        table.add_row(*line)
    console.print(table)
    if found.certified:
        console.print(tables.certificate(found), highlight=False)
