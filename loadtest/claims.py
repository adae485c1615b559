"""Claims of experiments with their limits, and the options that all experiments share."""

import argparse
import asyncio
import json
import platform
import tempfile
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.servers import Server, rerankd_server, wait_until_ready
from rerankd.concurrency.worker import available_cores
from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.tools.benchmark.benchmark import cpu_name

T = TypeVar("T")

LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Claim:
    """`what` was measured to be `value`, and should be within the limit; without one it is only told."""

    what: str
    value: float
    bound: Literal["<=", ">=", ""] = ""
    limit: float = float("nan")

    @property
    def holds(self) -> bool:
        """False for NaN, which means that nothing was measured."""
        if not self.bound:
            return True
        return self.value <= self.limit if self.bound == "<=" else self.value >= self.limit


def parser(description: str | None, *, seconds: float) -> argparse.ArgumentParser:
    """The options of every experiment; `seconds` is the default length of each of its parts."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--registry", type=Path, default=SHIPPED_REGISTRY, help="served models; default: the shipped one")
    made.add_argument("--seconds", type=_seconds, default=seconds, help=f"of each part; default: {seconds:g}")
    made.add_argument("--output", type=Path, help="a JSON file to write")
    return made


def _seconds(text: str) -> float:
    return max(0.1, min(float(text), LONGEST_S))


@contextmanager
def served(registry: Path, **environment: str) -> Iterator[Server]:
    """The service over a registry, ready; without a cache unless RERANKD_CACHE_URL says otherwise."""
    settings = {"RERANKD_CACHE_URL": "none://", "RERANKD_LOG_LEVEL": "WARNING", **environment}
    with tempfile.TemporaryDirectory() as name, rerankd_server(Path(name), registry, **settings) as server:
        wait_until_ready(server)
        yield server


def run(experiment: Coroutine[Any, Any, T]) -> T:
    """Run on the same kind of event loop as the service."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(experiment)


def conclude(claims: Sequence[Claim], arguments: argparse.Namespace, facts: Mapping[str, object] | None = None) -> int:
    """Print each claim with what was measured, write the JSON, and return the exit status: 1 if one does not hold."""
    table = Table("", "measured", "claimed", "")
    for claim in claims:
        limit = f"{claim.bound} {claim.limit:g}" if claim.bound else ""
        verdict = ("[green]holds[/]" if claim.holds else "[bold red]DOES NOT HOLD[/]") if claim.bound else ""
        table.add_row(claim.what, f"{claim.value:.4g}", limit, verdict)
    console = Console()
    console.print(table)
    for name, fact in (facts or {}).items():
        console.print(f"{name}: {fact}", highlight=False, markup=False)
    if arguments.output is not None:
        report = {
            "machine": f"{cpu_name()}, {available_cores()} cores",
            "python": platform.python_version(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "options": {name: str(value) for name, value in vars(arguments).items()},
            "claims": [{**asdict(claim), "holds": claim.holds} for claim in claims],
            **(facts or {}),
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(claim.holds for claim in claims) else 1
