"""What our pipeline makes of a GPU, beside sentence-transformers' `CrossEncoder.predict` in the same run.

    python -m loadtest.gpu [--device cuda] [--peak-tflops 989] [--minutes 9] [--json FILE] [--markdown FILE]
    python -m loadtest.gpu --tiny --device cpu                          # does everything work? some seconds

Models of MiniLM-L6's, XLM-RoBERTa-large's and ModernBERT-base's shapes with random weights, made in code. For each:

1. the scores of all sides agree: our pipeline with padding, packed (sequences end to end) with one worker and with two
   (one batch is copied beside the computation of another), with CUDA graphs, and compiled on demand (`--variants`), and
   theirs;
2. throughput: requests of the reference workload all at once (ours), and their pairs in one `predict` (theirs), in
   turn; pairs/s, tokens/s, and the share of the device's matrix peak that the model's own operations make up: padding
   does not count as work;
3. latency against offered load: 30-document requests as a Poisson process at shares of the measured throughput,
   counted from the intended arrival.

Needs torch, transformers, sentence-transformers and pydantic; no web framework. Where pydantic is missing and nothing
can be downloaded, carry it: `pip download --only-binary=:all: --python-version 3.12 -d wheels pydantic`, and there
`pip install --no-index --find-links wheels pydantic`.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from loadtest.gpu.operations import Operations
from loadtest.gpu.rerankers import VARIANTS, Ours, Reranker, Theirs, open_ours
from loadtest.random_models import MODELS, build
from rerankd.tools.benchmark.arrivals import in_time, poisson_arrivals
from rerankd.tools.benchmark.workload import Shape, Workload

_DOCUMENTS = 30
# Compiling takes longer than all that is measured.
_VARIANTS = [name for name in VARIANTS if name != "compiled"]
_ONLY_ON_CUDA = {"CUDA graphs"}
_UTILIZATIONS = (0.3, 0.6, 0.9)
_PERCENTILES = (50, 95, 99)
_LEAST_CORRELATION = 0.98


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and the tokens of each of its pairs."""

    query: str
    documents: Sequence[str]
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Medians over rounds; `share_of_peak` is of the matrix peak that the command line names."""

    model: str
    side: str
    pairs_per_s: float
    tokens_per_s: float
    share_of_peak: float
    rounds_pairs_per_s: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """At an offered load, in requests a second; milliseconds from the intended arrival. `unfinished` requests were
    given up and count with the time until then: true latencies are longer.
    """

    model: str
    side: str
    utilization: float
    requests_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    unfinished: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    throughputs: list[Throughput]
    latencies: list[Latency]
    correlations: dict[str, float]
    details: dict[str, str]


def main() -> int:
    arguments = _parse()
    report = Report(throughputs=[], latencies=[], correlations={}, details=_details(arguments))
    sides = len(arguments.variants) + 1
    part_s = 60 * arguments.minutes / len(arguments.models) / (sides * (arguments.rounds + len(_UTILIZATIONS) + 2))
    for name in arguments.models:
        print(f"building {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            built = build(name, Path(folder), tiny=arguments.tiny)
            asyncio.run(_measure_model(name, built, arguments, part_s, report))
    page = markdown(report)
    print(page)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(page, encoding="utf-8")
    return 0 if all(one >= _LEAST_CORRELATION for one in report.correlations.values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="of ours; default: without compiled")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense matrix peak; default: H200 in bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0, help="about, for all models")
    parser.add_argument("--tiny", action="store_true", help="the same kinds of models, very small")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or ("float32" if arguments.device == "cpu" else "bfloat16")
    arguments.minutes = min(arguments.minutes, 60.0)
    on_cuda = arguments.device.startswith("cuda")
    arguments.variants = arguments.variants or [name for name in _VARIANTS if on_cuda or name not in _ONLY_ON_CUDA]
    return arguments


async def _measure_model(name: str, folder: Path, arguments: argparse.Namespace, part_s: float, report: Report) -> None:
    async with AsyncExitStack() as stack:
        placed = {"device": arguments.device, "precision": arguments.precision}
        ours = [await stack.enter_async_context(open_ours(folder, side, **placed)) for side in arguments.variants]
        theirs = Theirs(folder, **placed)
        with torch.device("meta"):
            operations = Operations.of(
                AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
            )
        few = _questions(folder, count=8)
        for side in ours:
            report.correlations[f"{name}, {side.name}"] = await _correlation(few, side, theirs)
        many = _questions(folder, count=await _affordable(few, ours, theirs, part_s))
        best = await _throughputs(name, many, ours, theirs, operations, arguments, report)
        await _latencies(name, many, (*ours, theirs), best, part_s, report)


def _questions(folder: Path, *, count: int) -> list[Question]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bodies = [json.loads(body.content) for body in islice(Workload(Shape((_DOCUMENTS,)), seed=time.time_ns()), count)]
    return [Question(body["query"], body["documents"], _lengths(tokenizer, body)) for body in bodies]


def _lengths(tokenizer: Tokenizer, body: dict[str, list[str]]) -> list[int]:
    pairs = [(body["query"], document) for document in body["documents"]]
    return [min(512, len(encoding.ids)) for encoding in tokenizer.encode_batch_fast(pairs)]


async def _correlation(questions: Sequence[Question], ours: Ours, theirs: Theirs) -> float:
    """Of all scores of two sides. They are rounded differently: precisions of 8 bits and batches of other shapes."""
    scores = [
        np.concatenate([await side.score(one.query, one.documents) for one in questions]) for side in (ours, theirs)
    ]
    return float(np.corrcoef(scores[0], scores[1])[0, 1])


async def _affordable(few: Sequence[Question], ours: Sequence[Ours], theirs: Theirs, part_s: float) -> int:
    """How many requests the slowest side answers in a part of the run."""
    seconds = 0.0
    for side in (*map(_all_at_once, ours), _in_one_call(theirs)):
        await side(few)  # the first pass compiles kernels and fills pools
        started = perf_counter()
        await side(few)
        seconds = max(seconds, perf_counter() - started)
    return max(len(few), min(4000, int(part_s / seconds * len(few))))


_Pass = Callable[[Sequence[Question]], Awaitable[object]]


def _all_at_once(side: Reranker) -> _Pass:
    async def score(questions: Sequence[Question]) -> None:
        await asyncio.gather(*(side.score(one.query, one.documents) for one in questions))

    return score


def _in_one_call(theirs: Theirs) -> _Pass:
    async def score(questions: Sequence[Question]) -> None:
        theirs.predict([(one.query, document) for one in questions for document in one.documents])

    return score


async def _throughputs(
    name: str,
    questions: Sequence[Question],
    ours: Sequence[Ours],
    theirs: Theirs,
    operations: Operations,
    arguments: argparse.Namespace,
    report: Report,
) -> float:
    """Add all sides' throughput to the report, and return the requests a second of our first variant."""
    lengths = [length for one in questions for length in one.lengths]
    needed = operations.needed(lengths)
    passes: dict[str, _Pass] = {side.name: _all_at_once(side) for side in ours}
    passes[theirs.name] = _in_one_call(theirs)
    seconds: dict[str, list[float]] = {side: [] for side in passes}
    for number in range(arguments.rounds):
        for side in sorted(passes, reverse=bool(number % 2)):
            started = perf_counter()
            await passes[side](questions)
            seconds[side].append(perf_counter() - started)
    for side, taken in seconds.items():
        middle = median(taken)
        report.throughputs.append(
            Throughput(
                model=name,
                side=side,
                pairs_per_s=len(lengths) / middle,
                tokens_per_s=sum(lengths) / middle,
                share_of_peak=needed / middle / (1e12 * arguments.peak_tflops),
                rounds_pairs_per_s=[len(lengths) / one for one in taken],
            )
        )
    return len(questions) / median(seconds[ours[0].name])


async def _latencies(
    name: str, questions: Sequence[Question], sides: Sequence[Reranker], best: float, part_s: float, report: Report
) -> None:
    """All sides at shares of our throughput; theirs may be overloaded by it, which is the comparison."""
    for utilization in _UTILIZATIONS:
        for side in sides:
            rate = utilization * best
            latencies_ms, unfinished = await _open_loop(side, questions, rate, part_s)
            if not latencies_ms:
                continue
            p50, p95, p99 = (float(value) for value in np.percentile(latencies_ms, _PERCENTILES))
            report.latencies.append(
                Latency(
                    model=name,
                    side=side.name,
                    utilization=utilization,
                    requests_per_s=rate,
                    p50_ms=p50,
                    p95_ms=p95,
                    p99_ms=p99,
                    unfinished=unfinished,
                )
            )


async def _open_loop(
    side: Reranker, questions: Sequence[Question], rate: float, seconds: float
) -> tuple[list[float], int]:
    """Milliseconds of every request, and how many were given up: half of the time is for arrivals."""
    latencies_ms: list[float] = []
    given_up = 0

    async def one(question: Question, intended: float) -> None:
        nonlocal given_up
        try:
            await side.score(question.query, question.documents)
        except asyncio.CancelledError:
            given_up += 1
        latencies_ms.append(1000 * (perf_counter() - intended))

    requests: list[asyncio.Task[None]] = []
    async for intended in in_time(perf_counter(), poisson_arrivals(rate, seconds / 2, Random(1))):
        requests.append(asyncio.create_task(one(questions[len(requests) % len(questions)], intended)))
    if requests:
        _, late = await asyncio.wait(requests, timeout=seconds / 2)
        for request in late:
            request.cancel()
        await asyncio.gather(*requests)
    return latencies_ms, given_up


def _details(arguments: argparse.Namespace) -> dict[str, str]:
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine()
    return {
        "command": " ".join(["python -m loadtest.gpu", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "precision": arguments.precision,
        "matrix peak": f"{arguments.peak_tflops:g} TFLOP/s",
        "torch": torch.__version__,
        "documents a request": str(_DOCUMENTS),
    }


def markdown(report: Report) -> str:
    parts = [
        "# On one device",
        "\n".join(
            [
                "| model | side | pairs/s | tokens/s | share of peak | rounds |",
                "|---|---|---|---|---|---|",
                *(
                    f"| {one.model} | {one.side} | {one.pairs_per_s:,.0f} | {one.tokens_per_s:,.0f} "
                    f"| {one.share_of_peak:.1%} | {', '.join(f'{rate:,.0f}' for rate in one.rounds_pairs_per_s)} |"
                    for one in report.throughputs
                ),
            ]
        ),
        "\n".join(
            [
                "| model | offered requests/s | side | p50 ms | p95 ms | p99 ms | given up |",
                "|---|---|---|---|---|---|---|",
                *(
                    f"| {one.model} | {one.requests_per_s:,.1f} ({one.utilization:.0%}) | {one.side} "
                    f"| {one.p50_ms:,.1f} | {one.p95_ms:,.1f} | {one.p99_ms:,.1f} | {one.unfinished} |"
                    for one in report.latencies
                ),
            ]
        ),
        "\n".join(
            f"- correlation with the scores of `predict`, {name}: {one:.4f}"
            for name, one in report.correlations.items()
        ),
        "\n".join(f"- {name}: {value}" for name, value in report.details.items()),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
