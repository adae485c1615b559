"""One benchmark, as the command line describes it: loads, their order, and the report's files.

Loads alternate: each is run once, then all again, so that a drift of the machine's speed affects all of them.
"""

import platform
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from rerankd import __version__
from rerankd.concurrency.worker import available_cores
from rerankd.errors import ConfigError
from rerankd.tools.benchmark.connection import Connection, ConnectionLost, Target
from rerankd.tools.benchmark.load import Window, closed_loop, open_loop
from rerankd.tools.benchmark.measurement import Measurement, measure
from rerankd.tools.benchmark.report import Point, Report
from rerankd.tools.benchmark.tables import markdown
from rerankd.tools.benchmark.workload import Format, Shape, Workload
from rerankd.tools.outputs import check_files

__all__ = ["Benchmark", "Format", "Load", "Outputs", "Plan", "Shape", "Target", "Window", "cpu_name", "save_report"]

_PICTURES = "rerankd.tools.benchmark.pictures"  # needs matplotlib, which is only needed for a picture

# Fields in which servers put an error's message, in the order in which we look.
_MESSAGES: Final = ("message", "error", "detail")
_LONGEST_BODY: Final = 300


@dataclass(frozen=True, slots=True)
class Load:
    """One load of one shape: a closed loop of `amount` clients, or an open one of `amount` requests a second. A
    `utilization` is a share of the best throughput that the closed loops of the shape showed.
    """

    shape: Shape
    kind: Literal["clients", "rate", "utilization"]
    amount: float

    def __str__(self) -> str:
        how = {"clients": f"{self.amount:g} clients", "rate": f"{self.amount:g} requests/s"}
        return f"{self.shape} documents, {how.get(self.kind, f'{self.amount:.0%} of the throughput')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. Without a `seed`, requests differ in every run, so that no cache knows them."""

    target: Target
    shapes: Sequence[Shape]
    clients: Sequence[int]
    rates: Sequence[float]
    utilizations: Sequence[float]
    window: Window
    repetitions: int = 3
    repeat_share: float = 0.0
    format: Format = field(default_factory=Format)
    seed: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if not (self.clients or self.rates):
            raise ConfigError("nothing to run: give --clients or --rate (--utilization needs --clients)")

    @property
    def loads(self) -> list[Load]:
        """Closed loops first, because they measure the throughput that utilizations refer to."""
        return [
            *(Load(shape, "clients", count) for shape in self.shapes for count in self.clients),
            *(Load(shape, "rate", rate) for shape in self.shapes for rate in self.rates),
            *(
                Load(shape, "utilization", share)
                for shape in self.shapes
                for share in self.utilizations
                if self.clients
            ),
        ]

    @property
    def total(self) -> int:
        return self.repetitions * len(self.loads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files to write."""

    json: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None

    def prepare(self) -> None:
        """Check the files now rather than after minutes of load.

        Raises:
            ConfigError: one of the files cannot be written.
            ModuleNotFoundError: a picture is wanted, and matplotlib is not installed.
        """
        if self.plot is not None:
            import_module(_PICTURES)
        check_files({"--output": self.json, "--markdown": self.markdown, "--plot": self.plot})


class Benchmark:
    """Runs a plan. `report()` has the measurements so far."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._seed = plan.seed if plan.seed is not None else time.time_ns()
        self._server: Mapping[str, Any] = {}
        self._measured: dict[Load, list[Measurement]] = {load: [] for load in plan.loads}

    async def run(self) -> AsyncIterator[tuple[Load, Measurement]]:
        """Yield each repetition of each load when it is over.

        Raises:
            ConfigError: the server does not answer a first request.
        """
        self._server = await self._look()
        for _ in range(self._plan.repetitions):
            for load in self._plan.loads:
                measurement = await self._measure(load)
                self._measured[load].append(measurement)
                yield load, measurement

    def report(self) -> Report:
        return Report(
            points=[
                Point(
                    documents=str(load.shape),
                    mode="closed" if load.kind == "clients" else "open",
                    load=load.amount if load.kind != "utilization" else self._rate(load),
                    utilization=load.amount if load.kind == "utilization" else None,
                    repetitions=measured,
                )
                for load, measured in self._measured.items()
                if measured
            ],
            details=self._details(),
        )

    async def _measure(self, load: Load) -> Measurement:
        self._seed += 1
        plan = self._plan
        bodies = Workload(load.shape, seed=self._seed, repeat_share=plan.repeat_share, format=plan.format)
        if load.kind == "clients":
            run = await closed_loop(plan.target, bodies, plan.window, clients=int(load.amount))
        else:
            run = await open_loop(plan.target, bodies, plan.window, rate=self._rate(load), seed=self._seed)
        return measure(run)

    def _rate(self, load: Load) -> float:
        """Requests per second. Fixed after the first repetition, so that all repetitions have the same load."""
        if load.kind == "rate":
            return load.amount
        first = [self._measured[other][0] for other in self._measured if _is_closed_sibling(other, load)]
        best = max(measurement.requests_per_s for measurement in first)
        if not best:
            raise ConfigError(f"no request of {load.shape} documents was answered in time: use a longer --seconds")
        return load.amount * best

    async def _look(self) -> Mapping[str, Any]:
        """Send one request of each shape, and ask the server what it serves."""
        connection = Connection(self._plan.target)
        try:
            for shape in self._plan.shapes:
                body = next(Workload(shape, seed=self._seed, format=self._plan.format))
                answer = await connection.post(body.content)
                if answer.status != 200:
                    raise ConfigError(
                        f"the server answered {answer.status} to a request with {shape} documents: {_said(answer.body)}"
                    )
            return _described(await connection.get("/info"))
        except ConnectionLost as error:
            raise ConfigError(f"the server at port {self._plan.target.port} does not answer: {error}") from None
        finally:
            connection.close()

    def _details(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "command": plan.command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rerankd": __version__,
            "python": platform.python_version(),
            "machine": f"{cpu_name()}, {available_cores()} cores, {platform.system()}",
            "server": dict(self._server),
            "seconds": plan.window.seconds,
            "warmup_s": plan.window.warmup_s,
            "repetitions": plan.repetitions,
            "repeat_share": plan.repeat_share,
        }


def save_report(report: Report, outputs: Outputs) -> None:
    if outputs.json is not None:
        outputs.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if outputs.markdown is not None:
        outputs.markdown.write_text(markdown(report), encoding="utf-8")
    if outputs.plot is not None:
        import_module(_PICTURES).draw(report, outputs.plot)


def cpu_name() -> str:
    """The CPU's name, or its architecture if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _is_closed_sibling(other: Load, load: Load) -> bool:
    return other.kind == "clients" and other.shape == load.shape


def _described(answer: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """The models of a rerankd server; empty for another server."""
    try:
        info = orjson.loads(answer.body)
        kept = ("id", "engine", "revision", "max_length")
        models = [{key: model[key] for key in kept if key in model} for model in info["models"]]
        return {"version": info["version"], "models": models}
    except (ValueError, KeyError, TypeError):
        return {}


def _said(body: bytes) -> str:
    """The error's message in an answer, in any of the usual fields."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        said = None
    while isinstance(said, dict):
        said = next((said[name] for name in _MESSAGES if said.get(name)), None)
    return said if isinstance(said, str) else body[:_LONGEST_BODY].decode(errors="replace")
