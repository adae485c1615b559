"""The command `rerankd`."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from app import logs
from app.assembly import model_folder
from app.config import ModelSpec, read_registry, read_settings
from app.errors import ConfigError

cli = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False, help="A reranking service."
)
_Registry = Annotated[Path | None, typer.Option(help="The registry of served models.", show_default=False)]


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default=False)] = None,
    registry: _Registry = None,
) -> None:
    """Serve every model of the registry over HTTP. Settings come from the environment (docs/configuration.md)."""
    from app.main import serve as serve_http  # noqa: PLC0415 - other commands need no web framework

    settings = read_settings(host=host, port=port, registry=registry)
    logs.configure(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_http(settings))


@cli.command()
def models(registry: _Registry = None) -> None:
    """List what the registry serves."""
    settings = read_settings(registry=registry)
    entries = read_registry(settings.registry)
    table = Table("model", "aliases", "scorer", "engine", "path", "revision")
    for spec in entries.model:
        default = " (default)" if spec.name == (entries.default or entries.model[0].name) else ""
        aliases = ", ".join(spec.aliases)
        table.add_row(spec.name + default, aliases, spec.scorer, spec.engine, spec.path, spec.revision or "")
    Console().print(table)


@cli.command()
def export(
    source: Annotated[str, typer.Argument(help="A Hugging Face folder, or hub:org/name@revision.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    precision: Annotated[
        list[str] | None, typer.Option(help="float32, float16 or int8; may be repeated. Default: all three.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run Python code of the model's repository.")] = False,
) -> None:
    """Turn a Hugging Face cross-encoder into ONNX, with a report of how far each precision is from torch."""
    settings = read_settings()
    spec = ModelSpec(name="source", path=source, engine="torch-encoder", trust_remote_code=trust_remote_code)
    with _needing("export"):
        from app.exporting import GRAPHS, export_cross_encoder  # noqa: PLC0415 - torch is not part of a service
    wanted = precision or list(GRAPHS)
    unknown = set(wanted) - set(GRAPHS)
    if unknown:
        raise ConfigError(f"unknown precision {', '.join(sorted(unknown))}; known: {', '.join(GRAPHS)}")
    console = Console()
    with console.status("starting") as status:
        parities = export_cross_encoder(
            model_folder(spec, settings, beside=Path.cwd()),
            target,
            precisions=[name for name in GRAPHS if name in wanted],
            trust_remote_code=trust_remote_code,
            on_step=status.update,
        )
    table = Table("precision", "file", "MB", "largest |difference| from torch", "mean")
    for parity in parities:
        table.add_row(
            parity.precision,
            parity.file,
            f"{parity.megabytes:.1f}",
            f"{parity.largest_difference:.2g}",
            f"{parity.mean_difference:.2g}",
        )
    console.print(table)


@contextmanager
def _needing(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; run: pip install 'rerankd[{extra}]'") from None


def main() -> None:
    """Run the command line; a configuration that cannot be used ends it with status 2 and one line of why."""
    try:
        cli()
    except ConfigError as error:
        Console(stderr=True).print(f"[bold red]rerankd:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
