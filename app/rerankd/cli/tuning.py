"""`rerankd tune`: the fastest way to serve a model on this machine."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rerankd.cli.app import RegistryOption, interruptible, log_warnings_only, print_problem
from rerankd.config.named_models import served_registry
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings, read_settings
from rerankd.errors import ConfigError
from rerankd.serving.choosing import choose
from rerankd.tools.outputs import check_folder

if TYPE_CHECKING:
    from rerankd.tools.tuning import Tuned


def tune(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A served model; default: the registry's.")
    ] = None,
    budget_s: Annotated[float, typer.Option(min=1.0, help="Seconds to measure; loading takes extra time.")] = 60.0,
    registry: RegistryOption = None,
) -> None:
    """Find the fastest way to serve a model on this machine, and write it to a profile that `serve` uses."""
    from rerankd.serving.profiles import profile_path, write_profile  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.tuning import describe  # noqa: PLC0415 - as above

    settings = read_settings(registry=registry)
    log_warnings_only()
    named = served_registry(settings).named(model)
    if named.stages:
        raise ConfigError(
            f"{named.name!r} is a cascade and computes nothing itself; tune its members: "
            f"{', '.join(step.model for step in named.cascade)}"
        )
    spec = choose(named, settings)
    check_folder("RERANKD_PROFILES", settings.profiles)
    with interruptible("no profile was written"):
        outcome = asyncio.run(_show_tuning(spec, settings, budget_s=budget_s))
    path = profile_path(settings.profiles, spec.name)
    decision = outcome.decision
    earlier_stays = decision.doubtful and path.exists()
    if not earlier_stays:
        write_profile(path, outcome.profile)
    _print_outcome(outcome)
    console = Console()
    if earlier_stays:
        console.print(f"the profile of an earlier run is kept: {path}", highlight=False, soft_wrap=True)
        return
    kept = decision.chosen.speed / decision.default.speed
    console.print(f"kept: {describe(outcome.profile.choice)} ({kept:.2f} x the default)", highlight=False)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _print_outcome(outcome: "Tuned") -> None:
    """Print all measurements, and the reasons to doubt them."""
    from rerankd.tools.tuning import describe  # noqa: PLC0415 - a service needs none of it

    decision = outcome.decision
    table = Table("engine, workers, budget", "pairs/s")
    for candidate in outcome.candidates:
        table.add_row(describe(candidate.choice), f"{candidate.speed:.0f}")
    console = Console()
    console.print(table)
    if outcome.disturbances:
        print_problem(
            f"this machine was busy: {'; '.join(outcome.disturbances)}. Tune again while it does nothing else."
        )
    if decision.doubtful:
        console.print(
            f"not kept: {describe(decision.fastest.choice)} ({decision.gain:.2f} x the default), because repeated "
            f"measurements differ {decision.noise:.2f} x",
            highlight=False,
            soft_wrap=True,
        )


async def _show_tuning(spec: ModelSpec, settings: Settings, *, budget_s: float) -> "Tuned":
    """Measure with a progress bar and a line per candidate."""
    from rerankd.tools.tuning import Step, tune  # noqa: PLC0415 - a service needs none of it

    errors = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=errors) as progress:
        bar = progress.add_task("measuring", total=1.0)

        def show(step: Step) -> None:
            errors.print(step.text, highlight=False, markup=False)
            progress.update(bar, completed=step.fraction)

        return await tune(spec, settings, budget_s=budget_s, on_step=show)
