"""`rerankd serve`: models over HTTP, or a check of the configuration."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from rerankd.api.service_process import run_service
from rerankd.api.transport.listening import check_address
from rerankd.cli.app import RegistryOption, log_warnings_only
from rerankd.cli.listing import list_problems
from rerankd.config.settings import Settings, read_settings, try_settings
from rerankd.errors import ConfigError
from rerankd.serving.choosing import refuse_unserved_folders
from rerankd.tools.checking import Checked, check_settings

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="Folders, or names on the hub (org/name), to serve instead of the registry's models.",
        show_default=False,
    ),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)]
Port = Annotated[int | None, typer.Option(help="Port to listen on.", show_default=False)]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1, max=64, help="Front-end processes; with several, one more has the engines.", show_default=False
    ),
]
Names = Annotated[
    list[str] | None, typer.Option(help="What requests call the MODEL; one for each.", show_default=False)
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU where there is one.", show_default=False)
]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or int8.", show_default=False)]
Template = Annotated[
    str | None, typer.Option(help="The prompt of a language model that no file names.", show_default=False)
]
Adapter = Annotated[
    str | None, typer.Option(help="An adapter (LoRA) for the MODEL: a folder, or org/name.", show_default=False)
]
AdapterOf = Annotated[
    str | None,
    typer.Option(help="What the adapter calls the MODEL, if that is a copy by another name.", show_default=False),
]
Certify = Annotated[
    str | None, typer.Option(help="strict: refuse a MODEL that ranks obvious answers wrongly.", show_default=False)
]
Check = Annotated[
    bool, typer.Option("--check", help="Only check the configuration: exit with 2 and list all problems, or with 0.")
]
Load = Annotated[bool, typer.Option("--load", help="With --check: also download and load every model.")]


def serve(
    models: Models = None,
    *,
    host: Host = None,
    port: Port = None,
    processes: Processes = None,
    registry: RegistryOption = None,
    name: Names = None,
    device: Device = None,
    dtype: Dtype = None,
    template: Template = None,
    adapter: Adapter = None,
    adapter_of: AdapterOf = None,
    certify: Certify = None,
    check: Check = False,
    load: Load = False,
) -> None:
    """Serve models over HTTP: those named, or all of the registry. Settings come from the environment
    (docs/configuration.md).
    """
    if load and not check:
        raise ConfigError("--load is for --check; serving loads every model anyway")
    if models and registry:
        raise ConfigError("give MODEL or --registry, not both; a registry can name further models itself")
    of_model: dict[str, object] = {"name": tuple(name or ()), "device": device, "dtype": dtype, "template": template}
    of_model |= {"adapter": adapter, "adapter_of": adapter_of, "certify": certify}
    given: dict[str, object] = {"host": host, "port": port, "processes": processes, "registry": registry}
    given["model"] = tuple(models or ()) or (() if registry else None)
    given |= {f"model_{option}": value or None for option, value in of_model.items()}
    options = [f"--{option.replace('_', '-')}" for option, value in of_model.items() if value]
    if check:
        log_warnings_only()
        settings, known = try_settings(**given)
        _refuse_without_model(settings, options)
        raise typer.Exit(_report(check_settings(settings, known=known, load=load), settings, loaded=load))
    settings = read_settings(**given)
    _refuse_without_model(settings, options)
    check_address(settings.host, settings.port)
    refuse_unserved_folders(settings)
    if settings.processes > 1:
        from rerankd.api.fronts import serve as serve_by_fronts  # noqa: PLC0415 - as below

        run_service(settings, serve_by_fronts(settings, given))
    else:
        from rerankd.api.server import serve as serve_http  # noqa: PLC0415 - other commands need no web framework

        run_service(settings, serve_http(settings))


def _refuse_without_model(settings: Settings, options: Sequence[str]) -> None:
    """Refuse options of MODEL where the registry says what is served: they would change nothing."""
    if options and not settings.model:
        raise ConfigError(f"{', '.join(options)} needs a MODEL; the registry's models have their options there")


def _report(checked: Checked, settings: Settings, *, loaded: bool) -> int:
    """Print what a configuration serves and its problems, and return the exit status."""
    if list_problems(checked):
        return 2
    console = Console()
    keys = f"{checked.keys} API keys" if checked.keys else "no API keys: everyone who can reach the port can use it"
    found = "The configuration is usable" if loaded else "Nothing wrong was found"
    loading = "loaded" if loaded else "not loaded (--load does)"
    console.print(
        f"{found}. Models: {len(checked.models)}, {loading}. Address: {settings.host}:{settings.port}; {keys}.",
        highlight=False,
        soft_wrap=True,
    )
    return 0
