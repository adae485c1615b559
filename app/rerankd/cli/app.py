"""The command line's application, and what its commands share."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn

from rerankd import __version__
from rerankd.config.extras import missing
from rerankd.telemetry import logs

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="A reranking service: a query and candidate documents go in, the documents come back in order of relevance.",
    epilog="Begin with: rerankd serve",
)
PROGRESS_COLUMNS = (
    *Progress.get_default_columns(),
    TextColumn("{task.completed}/{task.total} {task.fields[speed]}"),
)
RegistryOption = Annotated[Path | None, typer.Option(help="The registry of served models.", show_default=False)]


def examples(*commands: str) -> str:
    """The last lines of `--help`. Blank lines keep them on separate lines."""
    return "\n\n".join(["Examples:", *commands])


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rerankd {__version__}")
        raise typer.Exit


@cli.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


def print_problem(problem: str) -> None:
    Console(stderr=True).print(f"[bold red]rerankd:[/] {escape(problem)}", highlight=False, soft_wrap=True)


def log_warnings_only() -> None:
    """Log warnings only, and the progress of downloads: the command prints the rest."""
    logs.configure("WARNING")
    logging.getLogger("rerankd.serving.downloads").setLevel(logging.INFO)


@contextmanager
def interruptible(how_to_continue: str) -> Iterator[None]:
    """On Ctrl-C print how to continue, and exit with the status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        print_problem(f"interrupted; {how_to_continue}")
        raise typer.Exit(130) from None


@contextmanager
def needing_extra(extra: str, *, command: str = "") -> Iterator[None]:
    """Name the extra to install where a package is missing; `command` if it is not called like the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(str(error.name), extra=extra, of=f"`rerankd {command or extra}`") from None
