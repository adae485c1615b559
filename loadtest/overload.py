"""Measures overload: what happens to requests when more arrive than the service can answer.

    python -m loadtest.overload [--seconds 30] [--times 3] [--deadline-ms 2000]

1. The capacity: a closed loop of 16 clients.
2. `--times` the capacity arrives in an open loop, each request with X-Request-Deadline-Ms: of those that were admitted
   (answered 200, or 504 because the deadline was missed) how many were answered in time, and how fast the others were
   refused.
3. Retry-After, for as many refusals as there is time for: the service is overloaded for a random time and until it
   refuses, the load stops at once, and the refused request is sent again every 0.05 s; how the time until it is
   admitted compares with what the refusal said in Retry-After-Ms (Retry-After itself has whole seconds, 1 at least).
   What is shorter than 0.1 s counts as that. While the load goes on nobody can know when there is room: somebody else
   may take it.
4. The same overload with half of the clients going away before the deadline.

Afterwards the queue must be empty, the memory about what it was, and a request as fast as before.
"""

import asyncio
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from time import perf_counter

from loadtest.claims import Claim, conclude, parser, run, served
from loadtest.servers import Server
from rerankd.tools.benchmark.connection import Answer, Connection, Target
from rerankd.tools.benchmark.load import Patience, Run, Sample, Window, closed_loop, open_loop, patient
from rerankd.tools.benchmark.measurement import latencies_ms, measure, percentile
from rerankd.tools.benchmark.workload import Shape, Workload

DEADLINE_HEADER = "X-Request-Deadline-Ms"

_REFUSED = ("429", "503")
_ADMITTED = ("200", "504")
_CLIENTS = 16
_PROBE_S = 0.05
_SHORTEST_S = 0.1
_LONGEST_PROBE_S = 120.0
# Refusals take milliseconds, see `deadline_claims`: a request without an answer for so long was admitted.
_REFUSED_WITHIN_S = 0.5
# The load lasts as long as a random number between these before a refusal counts, so that any refusal may.
_LOADED_S = (0.2, 1.0)
_QUEUE = re.compile(rb"^rerank_queue_tokens\{[^}]*\} ([\d.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Overload:
    """The offered load, its requests, and their deadline."""

    target: Target
    shape: Shape
    rate: float
    window: Window
    deadline_s: float

    async def load(self, patience: Patience = patient) -> Run:
        bodies = Workload(self.shape, seed=time.time_ns())
        seed = time.time_ns()
        return await open_loop(self.target, bodies, self.window, rate=self.rate, seed=seed, patience=patience)


def deadline_claims(samples: Sequence[Sample], *, deadline_s: float, when: str) -> list[Claim]:
    """Latency counts from when a request was sent: the generator's lateness is not the server's."""
    admitted = [sample for sample in samples if sample.outcome in _ADMITTED]
    refused = [sample for sample in samples if sample.outcome in _REFUSED]
    in_time = sum(one.answered and one.finished - one.sent <= deadline_s for one in admitted)
    refusals_ms = [1000 * (one.finished - one.sent) for one in refused]
    broken = sum(one.outcome not in (*_ADMITTED, *_REFUSED, "left") for one in samples)
    return [
        Claim(f"{when}: admitted requests that met their deadline, %", _percent(in_time, len(admitted)), ">=", 99.0),
        Claim(f"{when}: refusals, p99 ms", percentile(refusals_ms, 99), "<=", 50.0),
        Claim(f"{when}: requests neither answered nor refused", broken, "<=", 0),
        Claim(f"{when}: admitted, % of all", _percent(len(admitted), len(samples))),
    ]


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")


async def retry_after_claims(overload: Overload) -> list[Claim]:
    """Overload until a refusal, stop, see how long it takes until that client is admitted, and overload again."""
    rng = Random(time.time_ns())
    factors: list[float] = []
    ends = perf_counter() + overload.window.seconds
    async with asyncio.TaskGroup() as requests:
        while perf_counter() < ends and (factor := await _retry_after_factor(overload, requests, rng)) is not None:
            factors.append(factor)
    worst = max(factors, key=lambda factor: max(factor, 1 / factor), default=float("nan"))
    within = sum(0.5 <= factor <= 2.0 for factor in factors)
    return [
        Claim("Retry-After: refusals followed", len(factors)),
        Claim("Retry-After / the truth, median", percentile(factors, 50), "<=", 2.0),
        Claim("Retry-After / the truth, median", percentile(factors, 50), ">=", 0.5),
        Claim("Retry-After within a factor of two of the truth, %", _percent(within, len(factors)), ">=", 90.0),
        Claim("Retry-After / the truth, worst", worst),
    ]


async def _retry_after_factor(overload: Overload, requests: asyncio.TaskGroup, rng: Random) -> float | None:
    """The ratio of the announced and the true waiting time; None if nothing was refused."""
    refused = await _refusal(overload, requests, rng)
    if refused is None:
        return None
    refusal, body = refused
    told_s = float(refusal.headers[b"retry-after-ms"]) / 1000
    true_s = await _first_admission(overload, requests, body) - refusal.finished
    return max(_SHORTEST_S, told_s) / max(_SHORTEST_S, true_s)


async def _refusal(overload: Overload, requests: asyncio.TaskGroup, rng: Random) -> tuple[Answer, bytes] | None:
    """The first refusal after a random time, and the request; nothing more is sent after it."""
    bodies = Workload(overload.shape, seed=time.time_ns())
    refused: asyncio.Future[tuple[Answer, bytes]] = asyncio.get_running_loop().create_future()
    counts_from = perf_counter() + rng.uniform(*_LOADED_S)

    async def one(body: bytes) -> None:
        with _connected(overload.target) as connection:
            answer = await connection.post(body)
            if answer.headers.get(b"retry-after-ms") and answer.finished > counts_from and not refused.done():
                refused.set_result((answer, body))

    ends = counts_from + overload.window.seconds
    while not refused.done() and perf_counter() < ends:
        requests.create_task(one(next(bodies).content))
        await asyncio.wait([refused], timeout=rng.expovariate(overload.rate))
    return refused.result() if refused.done() else None


async def _first_admission(overload: Overload, requests: asyncio.TaskGroup, body: bytes) -> float:
    """When the request was sent that was not refused any more. A smaller one would be admitted earlier."""

    async def status() -> str:
        with _connected(overload.target) as connection:
            return str((await connection.post(body)).status)

    ends = perf_counter() + _LONGEST_PROBE_S
    while (sent := perf_counter()) < ends:
        answer = requests.create_task(status())
        await asyncio.wait([answer], timeout=_REFUSED_WITHIN_S)
        if not answer.done() or answer.result() not in _REFUSED:
            return sent
        await asyncio.sleep(_PROBE_S)
    return float("inf")


async def experiment(server: Server, arguments: Namespace) -> list[Claim]:
    plain = Target.from_url(server.url)
    shape = Shape((arguments.documents,))
    deadline_s = arguments.deadline_ms / 1000
    window = Window(warmup_s=min(2.0, arguments.seconds / 4), seconds=arguments.seconds, timeout_s=10 * deadline_s + 10)
    capacity = measure(
        await closed_loop(plain, Workload(shape, seed=time.time_ns()), window, clients=_CLIENTS)
    ).requests_per_s
    alone_ms = await _median_alone(plain, shape)
    memory = server.resident_bytes()
    overload = Overload(
        target=Target.from_url(server.url, headers={DEADLINE_HEADER: str(arguments.deadline_ms)}),
        shape=shape,
        rate=arguments.times * capacity,
        window=window,
        deadline_s=deadline_s,
    )
    claims = [Claim("capacity, requests/s", capacity)]
    claims += deadline_claims((await overload.load()).samples, deadline_s=deadline_s, when="overload")
    claims += await retry_after_claims(overload)
    rng = Random(1)
    impatient = await overload.load(lambda: rng.uniform(0, deadline_s) if rng.random() < 0.5 else None)
    claims += deadline_claims(impatient.samples, deadline_s=deadline_s, when="half of the clients leave")
    return [
        *claims,
        Claim("tokens that still wait afterwards", await _waiting_tokens(plain), "<=", 0),
        Claim("latency alone, after / before", await _median_alone(plain, shape) / alone_ms, "<=", 1.5),
        Claim("resident memory, after / before", server.resident_bytes() / memory, "<=", 1.2),
    ]


async def _median_alone(target: Target, shape: Shape) -> float:
    """In milliseconds, of ten requests one after another."""
    window = Window(warmup_s=0, seconds=1.0)
    samples = (await closed_loop(target, Workload(shape, seed=time.time_ns()), window, clients=1)).samples
    return latencies_ms([sample for sample in samples if sample.answered])["p50"]


async def _waiting_tokens(target: Target) -> float:
    with _connected(target) as connection:
        metrics = (await connection.get("/metrics")).body
    found = _QUEUE.findall(metrics)
    return sum(float(tokens) for tokens in found) if found else float("nan")


@contextmanager
def _connected(target: Target) -> Iterator[Connection]:
    connection = Connection(target)
    try:
        yield connection
    finally:
        connection.close()


def main() -> int:
    options = parser(__doc__, seconds=30)
    options.add_argument("--times", type=float, default=3.0, help="the capacity")
    options.add_argument("--deadline-ms", type=int, default=2000)
    options.add_argument("--documents", type=int, default=30)
    options.add_argument("--max-waiting-tokens", type=int, help="default: the service's own")
    arguments = options.parse_args()
    waiting = arguments.max_waiting_tokens
    limits = {"RERANKD_MAX_WAITING_TOKENS": str(waiting)} if waiting else {}
    with served(arguments.registry, **limits) as server:
        claims = run(experiment(server, arguments))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
