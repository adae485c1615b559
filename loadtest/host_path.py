"""What the service itself costs: with an engine that costs nothing, all CPU time is HTTP, texts, queue and arrays.

    python -m loadtest.host_path [--against REF] [--batch-tokens 512 65536] [--documents 30] [--clients 32] [--rounds 3]
    python -m loadtest.host_path --processes 2 [--batch-tokens 65536] [--documents 100]

Prints pairs for each second of CPU time of the service, and microseconds of it a pair by kind of thread. With py-spy
installed, a last round, which does not count otherwise, tells which parts hold Python's lock how much. `--against` also
serves an older commit, from a git worktree that is made for it and removed, and measures both in turns. Compiled files
that the worktree lacks are linked from here. Requests are those of the reference workload, or, with `--corpus`,
documents of a BEIR folder (`corpus.jsonl`, or `.gz`). No document of the workload comes twice, and there is no cache
unless `--cache` names one.

`--processes` also serves by that many front-end processes, in turns with one process, and prints microseconds a pair of
a front end and of the process with the engines. From these follows what both can do on a machine with enough cores: n
front ends move n pairs in the time of one, until the process with the engine, or one process alone, is busy all of the
time (its Python runs on one core).

The generator runs on the same machine, which does not matter: CPU time counts here, and wall time does not.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import psutil

from loadtest.claims import Claim, conclude, run
from loadtest.free_service import free_registry, without_weights
from loadtest.servers import Server, cpu_s_of, free_port, running, wait_until_ready
from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.tools.benchmark.connection import Target
from rerankd.tools.benchmark.load import Window, closed_loop
from rerankd.tools.benchmark.workload import Body, Shape, Workload

_ROOT: Final = Path(__file__).parents[1]
_HERE: Final = "this tree"
_PROCESSES: Final = "front-end processes"
_FRONT_END: Final = "front end"
_FRONT_MODULE: Final = "rerankd.api.front"
# Two front ends move at least this many times the pairs of one process.
_LEAST_RATIO: Final = 1.8
_CORPUS_BODIES: Final = 400
_MOST_TEXTS: Final = 20_000
_MOST_ROUNDS: Final = 20
_SETTINGS: Final = {"RERANKD_LOG_LEVEL": "WARNING", "RERANKD_MAX_WAITING_TOKENS": "100000000"}
# A frame's file.
_PLACE: Final = re.compile(r"/(?:app/rerankd|loadtest)/([\w/.]+\.py)")
_PARTS: Final = (
    ("free_engine", "the free engine"),
    ("engines/base", "padding"),
    ("cache/", "keys"),
    ("pipeline/known_scores", "keys"),
    ("pipeline/cached", "keys"),
    ("scorers/token_cache", "tokenizing: digests"),
    ("scorers/pair_template", "tokenizing: joining pairs"),
    ("scorers/cross_encoder", "tokenizing: joining pairs"),
    ("scorers/", "tokenizing"),
    ("tasks/", "work items"),
    ("pipeline/items", "work items"),
    ("batching/", "queue and planning"),
    ("concurrency/", "threads and turns"),
    ("api/dialects", "reading bodies, writing answers"),
    ("api/parsing", "reading bodies, writing answers"),
    ("api/rerank", "reading bodies, writing answers"),
    ("api/answers", "reading bodies, writing answers"),
    ("api/", "HTTP"),
    ("pipeline/", "stages"),
    ("serving/", "stages"),
    ("gateway/", "stages"),
    ("domain/", "stages"),
    ("telemetry/", "metrics"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """One version of the service: its name, the folder that its package is imported from, and its front-end
    processes.
    """

    name: str
    app: Path
    processes: int = 1


@dataclass(slots=True)
class _Measured:
    """Of one side in one regime, a number for each round; `shares` of the time with Python's lock."""

    pairs_per_cpu_s: list[float] = field(default_factory=list)
    # Most pairs a second with enough cores.
    bounds: list[float] = field(default_factory=list)
    microseconds: dict[str, list[float]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    def add(self, pairs: int, seconds: Mapping[str, float], *, processes: int) -> None:
        self.pairs_per_cpu_s.append(pairs / sum(seconds.values()))
        self.bounds.append(pairs / max(_busy_s(seconds, processes)))
        for kind, taken in seconds.items():
            self.microseconds.setdefault(kind, []).append(1e6 * taken / pairs)

    def lines(self) -> Iterator[str]:
        for kind, values in self.microseconds.items():
            yield f"{median(values):7.1f}  {kind}"
        for part, share in sorted(self.shares.items(), key=lambda one: -one[1]):
            yield f"{100 * share:9.1f} %  {part}"


def _busy_s(seconds: Mapping[str, float], processes: int) -> list[float]:
    """How long each process was busy, all of whose threads share its Python's lock."""
    front_ends = sum(taken for kind, taken in seconds.items() if kind.startswith(_FRONT_END))
    return [front_ends / processes, sum(seconds.values()) - front_ends]


class _Serving:
    """One version that serves over the free engine."""

    def __init__(self, side: Side, server: Server, folder: Path) -> None:
        self.side = side
        self.server = server
        self._folder = folder

    def load(self, bodies: Iterator[Body], window: Window, *, clients: int) -> tuple[int, Mapping[str, float]]:
        """The pairs that were answered, and the CPU time by kind of thread."""
        before = self._cpu_s()
        measured = run(closed_loop(Target.from_url(self.server.url), bodies, window, clients=clients))
        pairs = sum(sample.documents for sample in measured.samples if sample.answered)
        return pairs, {kind: taken - before.get(kind, 0.0) for kind, taken in self._cpu_s().items()}

    def _cpu_s(self) -> Mapping[str, float]:
        if self.side.processes == 1:
            return self.server.cpu_s()
        children = psutil.Process(self.server.process.pid).children()
        fronts = [child.pid for child in children if _FRONT_MODULE in child.cmdline()]
        of_fronts = sum((Counter(cpu_s_of(front)) for front in fronts), start=Counter[str]())
        return {
            **{f"{_FRONT_END}: {kind}": taken for kind, taken in of_fronts.items()},
            **{f"process with the engine: {kind}": taken for kind, taken in cpu_s_of(self.server.process.pid).items()},
        }

    def shares(self, bodies: Iterator[Body], window: Window, *, clients: int) -> Mapping[str, float]:
        """Of the time with Python's lock by part, as py-spy sees it; empty if it is not there."""
        program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if program is None:
            return {}
        stacks = self._folder / "stacks"
        seconds = max(1, round(window.seconds))
        command = [
            program,
            "record",
            "--nonblocking",
            "--full-filenames",
            "--rate",
            "250",
            "--format",
            "raw",
            "--duration",
            str(seconds),
        ]
        with subprocess.Popen(
            [*command, "--subprocesses", "--output", str(stacks), "--pid", str(self.server.process.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ):
            self.load(bodies, window, clients=clients)
        return _shares(stacks.read_text(encoding="utf-8")) if stacks.exists() else {}


def _shares(stacks: str) -> Mapping[str, float]:
    samples: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        samples[_part_of(stack)] += int(count)
    return {part: count / samples.total() for part, count in samples.items()}


def _part_of(stack: str) -> str:
    """By the innermost frame of the package."""
    for place in reversed(_PLACE.findall(stack)):
        if part := next((part for start, part in _PARTS if place.startswith(start)), ""):
            return part
    return "event loop and libraries"


@contextmanager
def older(ref: str) -> Iterator[Side]:
    """A worktree of a commit; removed afterwards."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", tree, ref], cwd=_ROOT, check=True)  # noqa: S607
        try:
            for compiled in (_ROOT / "app").rglob("*.so"):
                there = tree / compiled.relative_to(_ROOT)
                if there.parent.is_dir() and not there.exists():
                    there.symlink_to(compiled)
            yield Side(ref, tree / "app")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=_ROOT, check=True)  # noqa: S607


@contextmanager
def _serving(side: Side, folder: Path, registry: str, environment: Mapping[str, str]) -> Iterator[_Serving]:
    """The service over the free engine, ready."""
    file = folder / "registry.toml"
    file.write_text(registry, encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "loadtest.free_service", "serve", "--port", str(port), "--registry", str(file)]
    if side.processes > 1:
        command += ["--processes", str(side.processes)]
    paths = {"PYTHONPATH": f"{side.app}{os.pathsep}{_ROOT}"}
    with running(command, port, folder / "log", {**environment, **paths}) as server:
        wait_until_ready(server)
        yield _Serving(side, server, folder)


def _bodies(corpus: Path | None, *, documents: int, seed: int) -> Iterator[Body]:
    if corpus is None:
        return iter(Workload(Shape((documents,)), seed=seed))
    packed = corpus / "corpus.jsonl.gz"
    with gzip.open(packed) if packed.exists() else (corpus / "corpus.jsonl").open("rb") as lines:
        read = [json.loads(line) for line in islice(lines, _MOST_TEXTS)]
    texts = [f"{one.get('title', '')} {one['text']}".strip() for one in read]
    rng = Random(seed)
    return cycle(
        Body(
            json.dumps({"query": f"query {rng.random()}", "documents": rng.sample(texts, documents)}).encode(),
            documents,
        )
        for _ in range(_CORPUS_BODIES)
    )


def main() -> int:
    arguments = _parse()
    window = Window(warmup_s=0.5, seconds=min(arguments.seconds, 60.0))
    found: dict[tuple[str, int], _Measured] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = without_weights(arguments.model, folder / "model")
        sides = [Side(_HERE, _ROOT / "app")]
        if arguments.against:
            sides.append(stack.enter_context(older(arguments.against)))
        if arguments.processes > 1:
            sides.append(Side(f"{arguments.processes} {_PROCESSES}", _ROOT / "app", arguments.processes))
        for batch_tokens in arguments.batch_tokens:
            for name, measured in _in_turns(sides, folder, model, arguments, window, batch_tokens).items():
                found[name, batch_tokens] = measured
    others = [side.name for side in sides[1:]]
    return conclude(_claims(found, arguments.batch_tokens, others), arguments, _facts(found))


def _parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=5.0, help="of each load, at most 60; default: 5")
    options.add_argument("--output", type=Path, help="a JSON file to write")
    options.add_argument("--against", help="a git commit to serve beside this tree")
    options.add_argument("--processes", type=int, default=1, help="front-end processes to serve with as well")
    options.add_argument("--batch-tokens", nargs="+", type=int, default=[512, 65_536])
    options.add_argument("--documents", type=int, default=30, help="of each request; default: 30")
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--cache", default="none://", help="a cache URL; default: none://")
    options.add_argument("--corpus", type=Path, help="a BEIR folder; default: the reference workload")
    options.add_argument("--model", type=Path, default=SHIPPED_REGISTRY.parent / "minilm-qa", help="for its tokenizer")
    return options.parse_args()


def _in_turns(
    sides: Sequence[Side], folder: Path, model: Path, arguments: argparse.Namespace, window: Window, batch_tokens: int
) -> Mapping[str, _Measured]:
    """All sides under one batch budget, one load each a round."""
    found = {side.name: _Measured() for side in sides}
    environment = {**_SETTINGS, "RERANKD_CACHE_URL": arguments.cache}
    registry = free_registry(model, batch_tokens=batch_tokens)
    rounds = min(arguments.rounds, _MOST_ROUNDS)
    with ExitStack() as stack:
        services = []
        for number, side in enumerate(sides):
            place = folder / f"{number}-{batch_tokens}"
            place.mkdir()
            services.append(stack.enter_context(_serving(side, place, registry, environment)))
        for number in range(rounds + 1):
            for service in services[:: 1 if number % 2 else -1]:
                bodies = _bodies(arguments.corpus, documents=arguments.documents, seed=number)
                measured = found[service.side.name]
                if number < rounds:
                    pairs, seconds = service.load(bodies, window, clients=arguments.clients)
                    measured.add(pairs, seconds, processes=service.side.processes)
                else:
                    measured.shares = service.shares(bodies, window, clients=arguments.clients)
    return found


def _claims(found: Mapping[tuple[str, int], _Measured], budgets: Sequence[int], others: Sequence[str]) -> list[Claim]:
    claims = []
    for tokens in budgets:
        measured = {name: one for (name, of), one in found.items() if of == tokens}
        for name, one in measured.items():
            claims.append(Claim(f"batches of {tokens} tokens: {name}, pairs/s per core", median(one.pairs_per_cpu_s)))
            claims.append(Claim(f"batches of {tokens} tokens: {name}, most pairs/s", median(one.bounds)))
        here = measured[_HERE]
        for name in others:
            one = measured[name]
            if name.endswith(_PROCESSES):
                ratio = median(one.bounds) / median(here.bounds)
                claims.append(Claim(f"batches of {tokens} tokens: {name} / one process", ratio, ">=", _LEAST_RATIO))
            else:
                ratio = median(here.pairs_per_cpu_s) / median(one.pairs_per_cpu_s)
                claims.append(Claim(f"batches of {tokens} tokens: {_HERE} / {name}", ratio))
    return claims


def _facts(found: Mapping[tuple[str, int], _Measured]) -> dict[str, object]:
    return {
        f"{name}, batches of {tokens} tokens, microseconds a pair": "\n" + "\n".join(one.lines())
        for (name, tokens), one in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
