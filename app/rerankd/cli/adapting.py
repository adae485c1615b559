"""`rerankd adapt`: trains a model on a corpus, and writes it if it is better on held-out queries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rerankd.cli.app import RegistryOption, interruptible, log_warnings_only, needing_extra, print_problem
from rerankd.config.settings import read_settings
from rerankd.errors import ConfigError

if TYPE_CHECKING:
    from rerankd.tools.adapting.adapting import Endpoint, OnProgress

_HELD_OUT_HELP = "Judged questions to prove it on, never learnt from; default: a fifth of the queries."
_KEEP_HELP = "Write the model even if it is not better."


def adapt(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A data folder, or a corpus: see docs/evaluation.md.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to write; `rerankd serve` serves it.")],
    *,
    learn_from: Annotated[
        Literal["templates", "endpoint", "judgements", "clicks"],
        typer.Option(help="Queries made of the documents, written by a chat model, judged, or clicked."),
    ] = "templates",
    model: Annotated[str | None, typer.Option(help="A model of the registry; default: its default one.")] = None,
    held_out: Annotated[list[Path] | None, typer.Option(help=_HELD_OUT_HELP, metavar="FOLDER")] = None,
    endpoint: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint.", metavar="URL")] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="The model's name there.", metavar="NAME")] = None,
    endpoint_key_file: Annotated[Path | None, typer.Option(help="A file with its API key.", metavar="FILE")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Documents and their queries (JSONL) for it to imitate.", metavar="FILE")
    ] = None,
    clicks: Annotated[Path | None, typer.Option(help="What users saw and clicked (JSONL).", metavar="FILE")] = None,
    eta: Annotated[
        float, typer.Option(min=0.0, help="Rank k is looked at with (1/k)^eta, if no shuffled lists tell.")
    ] = 1.0,
    teacher: Annotated[
        str | None, typer.Option(help="A model of the registry that finds false negatives.", metavar="NAME")
    ] = None,
    loss: Annotated[
        Literal["softmax", "ranknet", "lambda", "neural-ndcg", "margin-mse"],
        typer.Option(help="`margin-mse` imitates the teacher."),
    ] = "softmax",
    queries: Annotated[int, typer.Option(min=1, help="Most queries to learn from.")] = 500,
    held_out_queries: Annotated[int, typer.Option(min=1, help="Most queries of each set of the proof.")] = 200,
    depth: Annotated[int, typer.Option(min=2, help="Candidates per query.")] = 100,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Time for training: the steps that fit, at the speed of the first ones.")
    ] = 20.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Take this number of steps, however long they take.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed and inputs give the same model.")] = 13,
    keep: Annotated[bool, typer.Option("--keep", help=_KEEP_HELP)] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run had done.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Adapt a model to a corpus; it is written only if held-out queries prove it better."""
    settings = read_settings(registry=registry)
    log_warnings_only()
    with needing_extra("train", command="adapt"):
        from rerankd.tools.adapting import adapting  # noqa: PLC0415 - needs torch
        from rerankd.tools.evaluation.tables import terminal_tables  # noqa: PLC0415 - as above
    wanted = adapting.Wanted(
        data=data,
        output=output,
        learn_from=learn_from,
        model=model,
        endpoint=_endpoint(endpoint, endpoint_model, endpoint_key_file, examples),
        clicks=clicks,
        eta=eta,
        teacher=teacher,
        held_out=held_out or (),
        queries=queries,
        held_out_queries=held_out_queries,
        depth=depth,
        loss=loss,
        minutes=minutes,
        steps=steps,
        seed=seed,
        keep=keep,
        fresh=fresh,
    )
    with (
        interruptible("the same command continues from there"),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
        ) as progress,
    ):
        outcome = adapting.adapt(wanted, settings, _shown(progress))
    console = Console()
    for table in terminal_tables(outcome.proof.report):
        console.print(table)
    if outcome.folder is None:
        print_problem(f"not shown to be better ({outcome.proof}); nothing was written, --keep writes it anyway")
        raise typer.Exit(1)
    console.print(f"{outcome.proof}\nwritten to {outcome.folder}", highlight=False, soft_wrap=True)


def _endpoint(
    url: str | None, model: str | None, api_key_file: Path | None, examples: Path | None
) -> "Endpoint | None":
    from rerankd.tools.adapting.adapting import Endpoint  # noqa: PLC0415 - needs torch

    if url is None or model is None:
        if url or model or api_key_file or examples:
            raise ConfigError("--endpoint and --endpoint-model belong together, and the others to them; give both")
        return None
    return Endpoint(url=url, model=model, api_key_file=api_key_file, examples=examples)


def _shown(progress: Progress) -> "OnProgress":
    """One bar for each stage, with the time left."""
    bars: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = progress.add_task(stage, total=total, completed=done)
        progress.update(bars[stage], completed=done, total=total)

    return show
