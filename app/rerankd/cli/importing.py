"""`rerankd import`: a GGUF file as a folder that is served."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from rerankd.cli.app import interruptible, needing_extra
from rerankd.errors import ConfigError
from rerankd.tools.outputs import check_folder

if TYPE_CHECKING:
    from rerankd.tools.importing import Precision

_PRECISIONS = ("float32", "float16")


def import_model(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A GGUF file of a language model.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write.")],
    *,
    precision: Annotated[
        str, typer.Option(help="float32, the numbers that the file means; or float16, in half the space.")
    ] = "float32",
) -> None:
    """Convert a GGUF file to a folder that `serve` and `export` read: weights, configuration and tokenizer."""
    if precision not in _PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(_PRECISIONS)}")
    with needing_extra("gguf", command="import"):
        from rerankd.tools.importing import import_gguf  # noqa: PLC0415 - a service needs none of it
    check_folder("TARGET", target)
    unfinished = f"{target} is unfinished; the same command makes it again"
    with interruptible(unfinished), Console().status("starting") as status:
        file = import_gguf(source, target, precision=cast("Precision", precision), on_step=status.update)
    console = Console()
    name = file.says.get("general.name") or source.stem
    console.print(f"{name} ({file.architecture}) is in {target}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"serve it: rerankd serve {target} --template NAME", highlight=False, markup=False, soft_wrap=True)
