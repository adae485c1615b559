"""`rerankd export`: a Hugging Face reranker as ONNX."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from rerankd.cli.app import RegistryOption, interruptible, needing_extra
from rerankd.config.registry import AUTO, ModelSpec
from rerankd.config.settings import read_settings
from rerankd.errors import ConfigError
from rerankd.recognition.recognised import TASKS
from rerankd.scorers import EXPORTED_SCORERS
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.choosing import exportable
from rerankd.serving.model_files import model_folder, template_folders
from rerankd.serving.sources import is_on_hub
from rerankd.tools.outputs import check_folder

if TYPE_CHECKING:
    from rerankd.tools.parity import Parity


def export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A Hugging Face folder, or hub:org/name@revision.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write.")],
    *,
    precision: Annotated[
        list[str] | None, typer.Option(help="float32, float16, int8 or int8-weights; may be repeated. Default: all.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The scorer to export for; default: what `serve` would use.", show_default=False)
    ] = None,
    template: Annotated[str | None, typer.Option(help="The prompt template of a language model.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Candidates that a listwise model reads at once.")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="`plain`, for classifiers that were trained on plain pairs.")
    ] = None,
    label: Annotated[
        int | None, typer.Option(min=0, help='The output that means "relevant", for heads with several.')
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run Python code of the model's repository.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Turn a Hugging Face reranker into ONNX, and report how far the scores of each precision are from torch."""
    settings = read_settings(registry=registry)
    given = {"template": template, "window": window, "pairs": pairs, "label": label}
    options = {name: value for name, value in given.items() if value is not None}
    if method not in (None, *EXPORTED_SCORERS):
        raise ConfigError(f"unknown method {method!r}; known: {', '.join(EXPORTED_SCORERS)}")
    with needing_extra("export"):
        from rerankd.tools.exporting import export_classifier, export_language_model  # noqa: PLC0415 - torch is not part of a service
        from rerankd.tools.graph_files import GRAPHS  # noqa: PLC0415 - as above
    unknown = set(precision or ()) - set(GRAPHS)
    if unknown:
        raise ConfigError(f"unknown precision {', '.join(sorted(unknown))}; known: {', '.join(GRAPHS)}")
    check_folder("TARGET", target)
    spec = ModelSpec(
        name="source",
        path=source if is_on_hub(source) else str(Path(source).expanduser().absolute()),
        scorer=method or AUTO,
        engine="torch-encoder",
        options=options,
        trust_remote_code=trust_remote_code,
    )
    if method is None:
        spec = exportable(spec, settings)
    export_source = export_language_model if TASKS[spec.scorer] == "read_tokens" else export_classifier
    unfinished = f"{target} is unfinished; the same command makes it again"
    with interruptible(unfinished), Console().status("starting") as status:
        parities = export_source(
            model_folder(spec, settings),
            target,
            method=spec.scorer,
            spec=ScorerSpec(
                folder=target, source=spec.path, templates=template_folders(settings), options=spec.options
            ),
            precisions=[name for name in GRAPHS if not precision or name in precision],
            trust_remote_code=trust_remote_code,
            on_step=status.update,
        )
    Console().print(_parity_table(parities))


def _parity_table(parities: Sequence["Parity"]) -> Table:
    table = Table("precision", "file", "MB", "largest |difference| from torch", "mean")
    for parity in parities:
        table.add_row(
            parity.precision,
            parity.file,
            f"{parity.megabytes:.1f}",
            f"{parity.largest_difference:.2g}",
            f"{parity.mean_difference:.2g}",
        )
    return table
