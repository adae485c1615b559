"""`rerankd models` and `rerankd inspect`: what would be served, and its problems."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rerankd.cli.app import RegistryOption, log_warnings_only, print_problem
from rerankd.config.named_models import named_model, served_registry
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings, read_settings
from rerankd.errors import ConfigError
from rerankd.serving.model_files import with_base
from rerankd.serving.sources import is_on_hub
from rerankd.tools.checking import Checked, check_settings
from rerankd.tools.inspecting import describe_adapter, describe_model, inspect_whole, inspection_table


def models(
    registry: RegistryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, with the problems of each model.")] = False,
) -> None:
    """List what the registry serves, and what is wrong with it; `rerankd serve --check` also fails if there is any."""
    settings = read_settings(registry=registry)
    served_registry(settings)  # raises where there is nothing to list
    log_warnings_only()
    checked = check_settings(settings)
    if as_json:
        typer.echo(json.dumps(_listed(checked), indent=2, ensure_ascii=False))
        return
    list_problems(checked)


def inspect_model(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, or a name on the hub (org/name).", show_default=False)
    ] = "",
    *,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A folder with an adapter of the model; without MODEL it is shown alone.", show_default=False
        ),
    ] = None,
    adapter_of: Annotated[str | None, typer.Option(help="As of `rerankd serve`.", show_default=False)] = None,
    template: Annotated[
        str | None, typer.Option(help="The prompt of a language model that no file names.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="As of `rerankd serve`.", show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help="As of `rerankd serve`.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Say what a model is, how it would be served here, and what was read from which file; weights are not fetched."""
    if adapter_of and not (model and adapter):
        raise ConfigError("--adapter-of says what an adapter calls the MODEL: name both, as MODEL --adapter FOLDER")
    settings = read_settings(
        model_device=device,
        model_dtype=dtype,
        model_template=template,
        model_adapter=adapter if model else None,
        model_adapter_of=adapter_of,
    )
    log_warnings_only()
    if model:
        report = _inspected(with_base(named_model(model, settings), settings), settings)
    elif adapter:
        report = describe_adapter(Path(adapter).expanduser().absolute())
    else:
        raise ConfigError("name a MODEL, an adapter (--adapter FOLDER), or both")
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        Console().print(inspection_table(report))
    if report["refused"]:
        raise typer.Exit(1)


def _inspected(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """A model, and its adapter where that is a local folder."""
    report = describe_model(spec, inspect_whole(spec, settings))
    if spec.adapter and not is_on_hub(spec.adapter):
        report["adapter_says"] = describe_adapter(Path(spec.adapter))
    return report


def list_problems(checked: Checked) -> int:
    """Print the models and all problems, and return the exit status."""
    if checked.registry is not None:
        Console().print(_models_table(checked))
    for problem in checked.all_problems:
        print_problem(problem)
    return 2 if checked.all_problems else 0


def _listed(checked: Checked) -> list[dict[str, object]]:
    """The fields are listed one by one, because options may be confidential."""
    return [
        {
            "name": spec.name,
            "aliases": list(spec.aliases),
            "default": spec.name == checked.default,
            "scorer": None if spec.stages else spec.scorer,
            "engine": None if spec.stages else spec.engine,
            "path": spec.path or None,
            "stages": list(spec.stages),
            "revision": spec.revision,
            "problems": list(model.problems),
        }
        for model in checked.models
        for spec in [model.spec]
    ]


def _models_table(checked: Checked) -> Table:
    """Columns that are empty for every model are left out, so that names and paths fit the terminal."""
    rows = [
        {
            "model": spec.name + (" (default)" if spec.name == checked.default else ""),
            "aliases": ", ".join(spec.aliases),
            "scorer": "cascade" if spec.stages else spec.scorer,
            "engine": "" if spec.stages else spec.engine,
            "path or stages": spec.path or " > ".join(spec.stages),
            "revision": spec.revision or "",
            "usable": "no" if model.problems else model.extent.value,
        }
        for model in checked.models
        for spec in [model.spec]
    ]
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in filled:
        table.add_column(name, overflow="fold", no_wrap=name in ("scorer", "engine", "usable"))
    for row in rows:
        table.add_row(*(row[name] for name in filled))
    return table
