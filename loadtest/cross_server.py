"""Compares servers with the same weights, measured alternately in one run.

    python -m loadtest.cross_server [--model FOLDER] [--clients 8 32] [--rounds 3] [--seconds 15]
                                    [--only NAME ...] [--json FILE [--resume]] [--markdown FILE]

`--model` is a Hugging Face folder of a cross-encoder with safetensors; without one a BERT of MiniLM-L6's shape with
random weights is made. The peers are installed from the package registry into environments of their own under
loadtest/.peers (about 2 GB, once). All servers run for the whole time, all but the measured one idle; each round
begins with another of them, so that a drift of the machine's speed meets all. First their scores are compared with
ours in float32: the largest difference of a relevance score, and the rank correlation. One that cannot be installed
or started is reported and left out.

`--seconds` bounds each measurement: what is not answered when its window closes is given up. Then the server has
until it is idle, at most a few seconds, to finish abandoned requests; one that does not is started again. How long
all of it takes at most is printed before it begins. A rate of fewer answers than clients is marked SHORT WINDOW: give
it more `--seconds`. `--json` is written after every measurement, and `--resume` goes on with a run that was stopped.
"""

import argparse
import asyncio
import json
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress

from loadtest.claims import run
from loadtest.contest import Contest, Scores, agreement, lines
from loadtest.contestants import CONTESTANTS, Weights
from loadtest.standing import START_TIMEOUT_S, Standing
from rerankd.concurrency.worker import available_cores
from rerankd.tools.benchmark.benchmark import cpu_name
from rerankd.tools.benchmark.connection import Connection, ConnectionLost, Target
from rerankd.tools.benchmark.load import Window, closed_loop
from rerankd.tools.benchmark.measurement import Measurement, measure
from rerankd.tools.benchmark.tables import markdown_table
from rerankd.tools.benchmark.workload import Shape, Workload

_COMPARED_REQUESTS: Final = 3
_COMPARISON_TIMEOUT_S: Final = 60.0
_REFERENCE: Final = "rerankd onnx float32"
_LONGEST_WINDOW_S: Final = 300.0
_LONGEST_DRAIN_S: Final = 10.0
# Programs start more slowly beside others that are running.
_START_MARGIN: Final = 1.5


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement."""

    round: int
    name: str
    clients: int


def steps(names: Sequence[str], loads: Sequence[int], *, rounds: int) -> list[Step]:
    """All measurements in turn; each round begins with another server."""
    return [
        Step(number, name, clients)
        for number in range(rounds)
        for name in (*names[number % len(names) :], *names[: number % len(names)])
        for clients in loads
    ]


def longest_s(left: Sequence[Step], start_s: Mapping[str, float], window: Window) -> float:
    """How long these steps take at most: servers start about as fast as they did before."""
    load_s = max(window.warmup_s, window.longest_warmup_s) + window.seconds
    return sum(load_s + _LONGEST_DRAIN_S + _START_MARGIN * start_s[step.name] for step in left)


def main() -> int:
    from loadtest.weights import prepare_weights  # noqa: PLC0415 - torch, which judging scores does not need

    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives a run that is stopped
    contest = _begun(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        standing = _start(arguments, prepare_weights(arguments.model, folder), folder, contest)
        try:
            run(_compare_scores(standing, arguments.documents, contest))
            _measure_all(standing, arguments, contest)
        finally:
            for server in standing.values():
                server.stop()
    _report(contest, arguments)
    failed = [
        one
        for measured in contest.measurements.values()
        for rounds in measured.values()
        for one in rounds
        if one.errors
    ]
    return 1 if failed or contest.absent else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: random weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--documents", default="30", help="documents a request, or a mix as 10+30+100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement, after a warm-up of a third")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--json", type=Path, help="a file that is written after every measurement")
    parser.add_argument("--resume", action="store_true", help="go on with the run that wrote the --json file")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    arguments.seconds = min(arguments.seconds, _LONGEST_WINDOW_S)
    if arguments.resume and arguments.json is None:
        parser.error("--resume needs the --json file of the run to go on with")
    return arguments


def _begun(arguments: argparse.Namespace) -> Contest:
    options = {
        "model": str(arguments.model or "random"),
        "documents": arguments.documents,
        "seconds": arguments.seconds,
    }
    if not (arguments.resume and arguments.json.exists()):
        return Contest(options)
    contest = Contest.read(arguments.json)
    if contest.options != options:
        raise SystemExit(
            f"{arguments.json} holds a run with {contest.options}, not {options}: it cannot be gone on with"
        )
    return contest


def _start(arguments: argparse.Namespace, weights: Weights, folder: Path, contest: Contest) -> dict[str, Standing]:
    """Install and start one after the other; what fails is noted."""
    names = arguments.only or list(CONTESTANTS)
    standing: dict[str, Standing] = {}
    for number, name in enumerate(names, start=1):
        _say(f"starting {name} ({number} of {len(names)}; at most {START_TIMEOUT_S:.0f} s, the first time installed)")
        server = Standing(CONTESTANTS[name], weights, folder)
        try:
            server.start()
        except (subprocess.CalledProcessError, AssertionError, OSError) as error:
            contest.absent[name] = str(error)[-2000:]
        else:
            standing[name] = server
    return standing


async def _compare_scores(standing: dict[str, Standing], documents: str, contest: Contest) -> None:
    """Note how far each server's scores are from ours; stop those that do not rank."""
    bodies = [body.content for body in islice(Workload(Shape.parse(documents), seed=7), _COMPARED_REQUESTS)]
    scores = {}
    for name in list(standing):
        try:
            scores[name] = await _ask(standing[name].target, bodies)
        except (ConnectionLost, TimeoutError, ValueError, KeyError, TypeError) as error:
            contest.absent[name] = f"it starts, but does not rank: {error!r:.300}"
            standing.pop(name).stop()
    reference = scores.get(_REFERENCE)
    for name, answers in scores.items():
        if reference is not None:
            contest.agreements[name] = agreement(answers, reference)


async def _ask(target: Target, bodies: Sequence[bytes]) -> list[Scores]:
    connection = Connection(target)
    async with asyncio.timeout(_COMPARISON_TIMEOUT_S):
        answers = [await connection.post(body) for body in bodies]
    connection.close()
    return [
        {result["index"]: result["relevance_score"] for result in json.loads(answer.body)["results"]}
        for answer in answers
    ]


def _measure_all(standing: Mapping[str, Standing], arguments: argparse.Namespace, contest: Contest) -> None:
    window = Window(
        warmup_s=arguments.seconds / 3, seconds=arguments.seconds, timeout_s=_LONGEST_WINDOW_S, waits_for_last=False
    )
    left = [
        step
        for step in steps(list(standing), arguments.clients, rounds=arguments.rounds)
        if step.round >= len(contest.rounds(step.name, step.clients))
    ]
    start_s = {name: server.start_s for name, server in standing.items()}
    bound = timedelta(seconds=round(longest_s(left, start_s, window)))
    load = timedelta(seconds=round(len(left) * (window.warmup_s + window.seconds)))
    _say(f"{len(left)} measurements: {load} of load, {bound} at most with what servers finish or start again between")
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=len(left))
        for step in left:
            what = f"{step.name}, {step.clients} clients"
            progress.update(bar, description=what)
            measured = _measure(standing[step.name], step, window, arguments.documents)
            contest.rounds(step.name, step.clients).append(measured)
            if arguments.json:
                contest.write(arguments.json, _details())
            progress.console.print(f"round {step.round + 1}: {what}: {measured.pairs_per_s:,.0f} pairs/s", markup=False)
            progress.advance(bar)


def _measure(server: Standing, step: Step, window: Window, documents: str) -> Measurement:
    bodies = Workload(Shape.parse(documents), seed=time.time_ns())
    measured = measure(run(closed_loop(server.target, bodies, window, clients=step.clients)))
    server.settle(within_s=_LONGEST_DRAIN_S)
    return measured


def _details() -> dict[str, str]:
    return {
        "command": shlex.join(["python", "-m", "loadtest.cross_server", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu_name()}, {available_cores()} cores, {platform.system()}, Python {platform.python_version()}",
        "packages": "loadtest/peers/*.txt; torch 2.13.0",
    }


def _report(contest: Contest, arguments: argparse.Namespace) -> None:
    details = _details()
    absent = [f"- {name} is left out: {why}" for name, why in contest.absent.items()]
    notes = "\n".join([*(f"- {name}: {value}" for name, value in details.items()), *absent])
    page = "\n\n".join(["# The same weights behind different servers", markdown_table(lines(contest)), notes]) + "\n"
    print(page)
    if arguments.markdown:
        arguments.markdown.write_text(page, encoding="utf-8")
    if arguments.json:
        contest.write(arguments.json, details)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
