"""The same weights behind different servers, measured in turn in one run.

    python -m loadtest.cross_server [--model FOLDER] [--clients 8 32] [--rounds 3] [--seconds 15]
                                    [--only NAME ...] [--json FILE] [--markdown FILE]

`--model` is a Hugging Face folder of a cross-encoder with safetensors; without one a BERT of MiniLM-L6's shape with
random weights is made. The peers are installed from the package registry into environments of their own under
loadtest/.peers (about 2 GB, once). All servers run for the whole time, all but the measured one idle; each round
begins with another of them, so that a drift of the machine's speed meets all. First their scores are compared with
ours in float32: the largest difference of a relevance score, and the rank correlation. One that cannot be installed
or started is reported and left out.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.progress import Progress

from app.benchmark.benchmark import processor
from app.benchmark.connection import Connection, ConnectionLost, Target
from app.benchmark.load import Window, closed_loop
from app.benchmark.measurement import Measurement, Spread, measure
from app.benchmark.tables import markdown_table
from app.benchmark.workload import Shape, Workload
from app.worker import available_cores
from loadtest.claims import run
from loadtest.contestants import CONTESTANTS, Contestant, Weights
from loadtest.servers import Server, free_port, running, wait

_START_TIMEOUT_S = 300.0
_COMPARED_REQUESTS = 3
_REFERENCE = "rerankd onnx float32"
_LEAST_CORRELATION = {"float32": 0.999, "int8": 0.9}

Scores = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a server's scores are from the reference's: of relevance scores, and of orders (Spearman)."""

    largest_difference: float
    rank_correlation: float


@dataclass(slots=True)
class Contest:
    """What was measured, by contestant and number of clients, one measurement a round."""

    measurements: dict[str, dict[int, list[Measurement]]] = field(default_factory=dict)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def ratios(self, name: str, clients: int) -> Spread | None:
        """Pairs a second over those of rerankd with weights of the same precision, round by round."""
        ours = self.measurements.get(f"rerankd onnx {CONTESTANTS[name].precision}", {}).get(clients, [])
        theirs = self.measurements[name][clients]
        ratios = [a.pairs_per_s / b.pairs_per_s for a, b in zip(theirs, ours, strict=False) if b.pairs_per_s]
        return Spread.of(ratios) if ratios else None


def main() -> int:
    from loadtest.weights import prepare_weights  # noqa: PLC0415 - torch, which judging scores does not need

    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives a run that is stopped
    names = arguments.only or list(CONTESTANTS)
    contest = Contest()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        weights = prepare_weights(arguments.model, folder)
        targets = {
            contestant.name: Target.from_url(server.url, path=contestant.path)
            for contestant, server in _started(names, weights, folder, stack, contest)
        }
        run(_compare_scores(targets, arguments.documents, contest))
        run(_measure_all(targets, arguments, contest))
    _report(contest, arguments)
    failed = [
        one for measured in contest.measurements.values() for block in measured.values() for one in block if one.errors
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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    arguments.seconds = min(arguments.seconds, 300.0)
    return arguments


def _started(
    names: Sequence[str], weights: Weights, folder: Path, stack: ExitStack, contest: Contest
) -> Iterator[tuple[Contestant, Server]]:
    """Install and start one after the other; what fails is noted."""
    for name in names:
        contestant = CONTESTANTS[name]
        print(f"starting {name}", file=sys.stderr, flush=True)
        try:
            yield contestant, stack.enter_context(_serving(contestant, weights, folder))
        except (subprocess.CalledProcessError, AssertionError, OSError) as error:
            contest.absent[name] = str(error)[-2000:]


@contextmanager
def _serving(contestant: Contestant, weights: Weights, folder: Path) -> Iterator[Server]:
    port = free_port()
    command = contestant.command(contestant.python(), weights, port)
    log = folder / f"{port}.log"
    place = contestant.folder(weights) if contestant.folder else None
    with running(command, port, log, contestant.environment, folder=place) as server:
        address = f"{server.url}{contestant.ready}"
        wait(server, lambda: httpx.get(address, timeout=20).status_code == 200, timeout_s=_START_TIMEOUT_S)
        yield server


async def _compare_scores(targets: dict[str, Target], documents: str, contest: Contest) -> None:
    """Note how far each server's scores are from ours; drop those that do not rank."""
    bodies = [body.content for body in islice(Workload(Shape.parse(documents), seed=7), _COMPARED_REQUESTS)]
    scores = {}
    for name in list(targets):
        try:
            scores[name] = await _ask(targets[name], bodies)
        except (ConnectionLost, TimeoutError, ValueError, KeyError, TypeError) as error:
            contest.absent[name] = f"it starts, but does not rank: {error!r:.300}"
            del targets[name]
    reference = scores.get(_REFERENCE)
    for name, answers in scores.items():
        if reference is not None:
            contest.agreements[name] = agreement(answers, reference)


async def _ask(target: Target, bodies: Sequence[bytes]) -> list[Scores]:
    connection = Connection(target)
    async with asyncio.timeout(_START_TIMEOUT_S):
        answers = [await connection.post(body) for body in bodies]
    connection.close()
    return [
        {result["index"]: result["relevance_score"] for result in json.loads(answer.body)["results"]}
        for answer in answers
    ]


def agreement(answers: Sequence[Scores], reference: Sequence[Scores]) -> Agreement:
    """Over all documents of all requests; correlations are means over requests."""
    differences, correlations = [], []
    for ours, theirs in zip(reference, answers, strict=True):
        a, b = (np.array([scores[index] for index in sorted(ours)]) for scores in (ours, theirs))
        differences.append(np.abs(a - b).max())
        correlations.append(np.corrcoef(_ranks(a), _ranks(b))[0, 1] if len(a) > 1 else 1.0)
    return Agreement(float(max(differences)), float(np.mean(correlations)))


def _ranks(values: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.int64]":
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


async def _measure_all(targets: Mapping[str, Target], arguments: argparse.Namespace, contest: Contest) -> None:
    window = Window(warmup_s=arguments.seconds / 3, seconds=arguments.seconds, timeout_s=300)
    contest.measurements = {name: {clients: [] for clients in arguments.clients} for name in targets}
    names = list(targets)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=arguments.rounds * len(arguments.clients) * len(names))
        for number in range(arguments.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                for clients in arguments.clients:
                    progress.update(bar, description=f"{name}, {clients} clients")
                    bodies = Workload(Shape.parse(arguments.documents), seed=time.time_ns())
                    measured = measure(await closed_loop(targets[name], bodies, window, clients=clients))
                    contest.measurements[name][clients].append(measured)
                    progress.advance(bar)


def lines(contest: Contest) -> list[list[str]]:
    """A head, and a line for each contestant and number of clients."""
    head = [
        "server",
        "weights",
        "clients",
        "pairs/s",
        "of rerankd's",
        "p50 ms",
        "p95 ms",
        "score diff.",
        "rank corr.",
        "failed",
    ]
    return [
        head,
        *(
            _line(contest, name, clients, measured)
            for name, blocks in contest.measurements.items()
            for clients, measured in blocks.items()
        ),
    ]


def _line(contest: Contest, name: str, clients: int, measured: Sequence[Measurement]) -> list[str]:
    pairs = Spread.of([one.pairs_per_s for one in measured])
    ratio = contest.ratios(name, clients)
    agrees = contest.agreements.get(name)
    precision = CONTESTANTS[name].precision
    differs = agrees is not None and not agrees.rank_correlation >= _LEAST_CORRELATION[precision]
    return [
        name,
        precision,
        str(clients),
        f"{pairs.median:,.0f} ({pairs.low:,.0f}..{pairs.high:,.0f})",
        f"{ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f})" if ratio else "-",
        *(f"{Spread.of([one.latency_ms[which] for one in measured]).median:,.0f}" for which in ("p50", "p95")),
        f"{agrees.largest_difference:.1e}" if agrees else "-",
        (f"{agrees.rank_correlation:.3f}" + (" OTHER SCORES" if differs else "")) if agrees else "-",
        str(sum(sum(one.errors.values()) for one in measured)),
    ]


def _report(contest: Contest, arguments: argparse.Namespace) -> None:
    details = {
        "command": shlex.join(["python", "-m", "loadtest.cross_server", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor()}, {available_cores()} cores, {platform.system()}, Python {platform.python_version()}",
        "packages": "loadtest/peers/*.txt; torch 2.13.0",
    }
    absent = [f"- {name} is left out: {why}" for name, why in contest.absent.items()]
    notes = "\n".join([*(f"- {name}: {value}" for name, value in details.items()), *absent])
    page = "\n\n".join(["# The same weights behind different servers", markdown_table(lines(contest)), notes]) + "\n"
    print(page)
    if arguments.markdown:
        arguments.markdown.write_text(page, encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({**asdict(contest), "details": details}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    sys.exit(main())
