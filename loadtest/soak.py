"""Runs load for minutes while parts fail, and checks for wrong or lost answers and growing memory.

    python -m loadtest.soak [--seconds 600] [--clients 8] [--break-every 20] [--kill-every 15]

Clients send a fixed set of requests and new ones, some go away in the middle; Redis, where the service keeps its
scores, is killed and started again; and threads that run forward passes are killed as they come to a pass, which is
lost (RERANKD_DEBUG_FAULTS). Every answer to a request of the fixed set is compared with what a service without
a cache answered to it alone. An answer is lost if its client stayed and got neither it nor a refusal with
Retry-After. Resident memory is compared between the second and the last quarter. Needs redis-server.
"""

import asyncio
import re
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import orjson

from loadtest.claims import Claim, conclude, parser, run, served
from loadtest.servers import Server, free_port, redis_server
from rerankd.tools.benchmark.connection import Answer, Connection, ConnectionLost, Target
from rerankd.tools.benchmark.workload import Shape, Workload

_FIXED_REQUESTS = 40
_NEW_SHARE = 0.3
_LEAVING_SHARE = 0.1
_LONGEST_STAY_S = 0.5
_TIMEOUT_S = 120.0
_REDIS_DOWN_S = 2.0
_MEMORY_PAUSE_S = 0.5
_REFUSALS = (429, 503)
# A thread that dies while it waits takes its next pass along, which is missed after this time.
_STUCK_AFTER_S = 3
_FAILED_PASSES = re.compile(rb"^rerank_failed_batches_total\{[^}]*\} (\S+)", re.MULTILINE)

Scores = dict[int, float]


@dataclass(frozen=True, slots=True)
class Reference:
    """Requests whose right answers are known."""

    bodies: Sequence[bytes]
    scores: Sequence[Scores]

    def difference(self, which: int, answer: Answer) -> float:
        """The largest between a relevance score and the right one; infinite if a document is missing or twice."""
        try:
            got = scores_of(answer)
        except (ValueError, KeyError, TypeError):
            return float("inf")
        right = self.scores[which]
        return max(abs(got[index] - right[index]) for index in right) if got.keys() == right.keys() else float("inf")


@dataclass(slots=True)
class Tally:
    """What became of requests. `differences` are those of answers to known requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    differences: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    redis_deaths: int = 0
    thread_deaths: int = 0
    failed_passes: float = 0.0

    def growth(self) -> float:
        """Median memory of the last quarter over that of the second: the first one warms up."""
        quarter = len(self.memory) // 4
        if not quarter:
            return float("nan")
        return median(self.memory[-quarter:]) / median(self.memory[quarter : 2 * quarter])


def scores_of(answer: Answer) -> Scores:
    results = orjson.loads(answer.body)["results"]
    scores = {result["index"]: result["relevance_score"] for result in results}
    return scores if len(scores) == len(results) else {}


async def ask_alone(url: str, shape: Shape) -> Reference:
    """Right answers: one request at a time."""
    connection = Connection(Target.from_url(url))
    bodies = [body.content for body in islice(Workload(shape, seed=1), _FIXED_REQUESTS)]
    scores = [scores_of(await connection.post(body)) for body in bodies]
    connection.close()
    return Reference(bodies, scores)


@dataclass(frozen=True, slots=True)
class Soak:
    server: Server
    reference: Reference
    shape: Shape
    ends: float
    tally: Tally

    async def client(self, seed: int) -> None:
        rng = Random(seed)
        connection = Connection(Target.from_url(self.server.url))
        new = Workload(self.shape, seed=seed)
        while perf_counter() < self.ends:
            which = None if rng.random() < _NEW_SHARE else rng.randrange(_FIXED_REQUESTS)
            body = next(new).content if which is None else self.reference.bodies[which]
            stay_s = rng.uniform(0, _LONGEST_STAY_S) if rng.random() < _LEAVING_SHARE else None
            await self._ask(connection, body, which, stay_s)
        connection.close()

    async def _ask(self, connection: Connection, body: bytes, which: int | None, stay_s: float | None) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S if stay_s is None else stay_s):
                answer = await connection.post(body)
        except TimeoutError:
            self.tally.outcomes["lost: no answer in time" if stay_s is None else "left"] += 1
        except ConnectionLost as error:
            self.tally.outcomes[f"lost: {error}"] += 1
            await asyncio.sleep(_MEMORY_PAUSE_S)
        else:
            await self._judge(answer, which)

    async def _judge(self, answer: Answer, which: int | None) -> None:
        retry_after = answer.headers.get(b"retry-after")
        if answer.status in _REFUSALS and retry_after is not None:
            self.tally.outcomes["refused"] += 1
            await asyncio.sleep(float(retry_after))
        elif answer.status != 200:
            self.tally.outcomes[f"lost: {answer.status}"] += 1
        else:
            self.tally.outcomes["answered"] += 1
            if which is not None:
                self.tally.differences.append(self.reference.difference(which, answer))

    async def break_redis(self, folder: Path, port: int, every_s: float) -> None:
        """Keep a Redis running on a port, but for two seconds again and again."""
        while True:
            with redis_server(folder, port=port):
                await asyncio.sleep(every_s)
            self.tally.redis_deaths += 1
            await asyncio.sleep(_REDIS_DOWN_S)

    async def kill_threads(self, every_s: float) -> None:
        rng = Random(0)
        while True:
            await asyncio.sleep(rng.uniform(0.5, 1.5) * every_s)
            self.server.process.send_signal(signal.SIGUSR1)
            self.tally.thread_deaths += 1

    async def watch_memory(self) -> None:
        while True:
            self.tally.memory.append(self.server.resident_bytes())
            await asyncio.sleep(_MEMORY_PAUSE_S)


async def soak(server: Server, reference: Reference, arguments: Namespace, folder: Path, port: int) -> Tally:
    tally = Tally()
    ends = perf_counter() + arguments.seconds
    soaking = Soak(server, reference, Shape((arguments.documents,)), ends, tally)
    beside = [
        asyncio.create_task(soaking.break_redis(folder, port, arguments.break_every)),
        asyncio.create_task(soaking.kill_threads(arguments.kill_every)),
        asyncio.create_task(soaking.watch_memory()),
    ]
    try:
        await asyncio.gather(*(soaking.client(time.time_ns() + number) for number in range(arguments.clients)))
    finally:
        for task in beside:
            task.cancel()
        for task in beside:
            with suppress(asyncio.CancelledError):
                await task
    tally.failed_passes = await _failed_passes(server)
    return tally


async def _failed_passes(server: Server) -> float:
    connection = Connection(Target.from_url(server.url))
    metrics = await connection.get("/metrics")
    connection.close()
    return sum(map(float, _FAILED_PASSES.findall(metrics.body)))


def main() -> int:
    options = parser(__doc__, seconds=600)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--documents", type=int, default=10)
    options.add_argument("--break-every", type=float, default=20.0, help="seconds that a Redis lives")
    options.add_argument("--kill-every", type=float, default=15.0, help="seconds between deaths of threads, on average")
    options.add_argument("--tolerance", type=float, default=1e-3, help="of a relevance score")
    arguments = options.parse_args()
    with served(arguments.registry) as alone:
        reference = run(ask_alone(alone.url, Shape((arguments.documents,))))
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as name,
        served(
            arguments.registry,
            RERANKD_CACHE_URL=f"redis://127.0.0.1:{port}/0",
            RERANKD_DEBUG_FAULTS="true",
            RERANKD_STUCK_AFTER_S=str(_STUCK_AFTER_S),
        ) as server,
    ):
        tally = run(soak(server, reference, arguments, Path(name), port))
    wrong = sum(not difference <= arguments.tolerance for difference in tally.differences)
    lost = sum(count for what, count in tally.outcomes.items() if what.startswith("lost"))
    claims = [
        Claim("answers compared", len(tally.differences), ">=", 1),
        Claim("wrong answers", wrong, "<=", 0),
        Claim("lost answers", lost, "<=", 0),
        Claim("largest difference of a score", max(tally.differences, default=float("nan"))),
        Claim("memory, last quarter / second quarter", tally.growth(), "<=", 1.05),
        Claim("times that Redis was killed", tally.redis_deaths),
        Claim("threads that were killed", tally.thread_deaths, ">=", 1),
        Claim("forward passes that failed by it", tally.failed_passes, ">=", 1),
    ]
    return conclude(claims, arguments, {"outcomes": dict(tally.outcomes)})


if __name__ == "__main__":
    sys.exit(main())
