"""Measures what hostile bodies cost: memory, CPU time, and how long they block the event loop.

    python -m loadtest.amplification --registry REGISTRY [--megabytes 8] [--only TEXT ...]     (or: make amplification)

Sends every shape of every field of every dialect to a service with default limits, one at a time (loadtest/hostile.py
reads the models, so new fields are included). Each body may take ten times its bytes plus 64 MiB, and block the event
loop for 100 ms. The slowest answer of `/health` shows how long the loop was blocked, and the CPU time of the loop's
thread until then how long it computed: on a busy machine only the latter tells.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import httpx
import psutil

from loadtest.claims import Claim, conclude, parser, run
from loadtest.hostile import HostileBody, hostile_bodies
from loadtest.servers import Server, rerankd_server, wait_until_ready
from rerankd.tools.benchmark.connection import Connection, Target

MOST_TIMES: Final = 10.0
MOST_MIB: Final = 64.0
MOST_LOOP_MS: Final = 100.0
_TIMEOUT_S: Final = 600.0
_SHOWN: Final = 10
_PAUSE_S: Final = 0.002
_MIB: Final = 2.0**20
_ENVIRONMENT: Final = {
    "RERANKD_CACHE_URL": "none://",
    "RERANKD_LOG_LEVEL": "ERROR",
    # freed memory returns to the system, so that a body's memory is not hidden by the body before
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one body cost the service."""

    name: str
    status: int
    body_mib: float
    memory_mib: float
    cpu_s: float
    loop_ms: float
    loop_cpu_ms: float

    @property
    def memory_beyond(self) -> float:
        """The memory used, divided by the limit."""
        return self.memory_mib / (MOST_TIMES * self.body_mib + MOST_MIB)

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.status}): {self.body_mib:.1f} MiB took {self.memory_mib:.0f} MiB, "
            f"{self.cpu_s:.2f} s of CPU, the loop {self.loop_ms:.0f} ms ({self.loop_cpu_ms:.0f} of CPU)"
        )


async def measure(server: Server, bodies: Sequence[HostileBody], *, size: int) -> list[Cost]:
    """The cost of each attack, one after another."""
    async with httpx.AsyncClient(base_url=server.url, timeout=_TIMEOUT_S) as http:
        return [await _cost(server, http, body, size=size) for body in bodies]


async def _cost(server: Server, http: httpx.AsyncClient, body: HostileBody, *, size: int) -> Cost:
    content = await asyncio.to_thread(body.content, size)
    process = psutil.Process(server.process.pid)
    _forget_peak(process.pid)
    before = process.memory_info().rss
    busy = sum(process.cpu_times()[:2])
    async with _health_times(server) as (times, cpu_times):
        answer = await http.post(
            body.path, content=content, headers={**body.headers, "Content-Type": "application/json"}
        )
    return Cost(
        name=str(body),
        status=answer.status_code,
        body_mib=len(content) / _MIB,
        memory_mib=max(0, _peak_bytes(process.pid) - before) / _MIB,
        cpu_s=sum(process.cpu_times()[:2]) - busy,
        loop_ms=max(times),
        loop_cpu_ms=max(cpu_times),
    )


def _forget_peak(pid: int) -> None:
    """Let the kernel measure a process's peak of resident memory again (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


@asynccontextmanager
async def _health_times(server: Server) -> AsyncIterator[tuple[list[float], list[float]]]:
    """Collect the milliseconds of answers of `/health`, and the CPU time of the event loop's thread in each."""
    times, cpu_times = [0.0], [0.0]

    async def ask() -> None:
        connection = Connection(Target.from_url(server.url))
        while True:
            sent, computed_ms = perf_counter(), _loop_cpu_ms(server)
            answer = await connection.get("/health")
            times.append(1000 * (answer.finished - sent))
            cpu_times.append(_loop_cpu_ms(server) - computed_ms)
            await asyncio.sleep(_PAUSE_S)

    asking = asyncio.create_task(ask())
    try:
        yield times, cpu_times
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def _loop_cpu_ms(server: Server) -> float:
    """CPU time of the service's first thread so far (proc(5), schedstat)."""
    first = server.process.pid
    return int(Path(f"/proc/{first}/task/{first}/schedstat").read_text(encoding="ascii").split()[0]) / 1e6


def claims_of(costs: Sequence[Cost]) -> list[Claim]:
    """What the worst of all may cost, and that the service answers each."""
    return [
        Claim("bodies sent", len(costs), ">=", 1),
        Claim("answered by an error of ours (5xx)", sum(cost.status >= 500 for cost in costs), "<=", 0),
        Claim("most memory, as a part of ten times the bytes and 64 MiB", max(c.memory_beyond for c in costs), "<=", 1),
        Claim("longest hold of the event loop, ms", max(cost.loop_ms for cost in costs), "<=", MOST_LOOP_MS),
        Claim("the same in CPU time of its thread, ms", max(cost.loop_cpu_ms for cost in costs), "<=", MOST_LOOP_MS),
        Claim("most CPU seconds for a MiB", max(cost.cpu_s / max(1.0, cost.body_mib) for cost in costs)),
    ]


def main() -> int:
    options = parser(__doc__, seconds=0)
    options.add_argument("--megabytes", type=float, default=8.0, help="of each body; default: 8")
    options.add_argument("--one-in", type=int, default=1, help="send every so manieth body only")
    options.add_argument("--only", nargs="+", metavar="TEXT", help="bodies whose name holds one of these")
    arguments = options.parse_args()
    if not os.access("/proc/self/clear_refs", os.W_OK):
        print("this needs Linux's /proc/PID/clear_refs", file=sys.stderr)
        return 2
    bodies = [
        body for body in hostile_bodies() if not arguments.only or any(text in str(body) for text in arguments.only)
    ][:: max(1, arguments.one_in)]
    if not bodies:
        print("no body has such a name", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as folder,
        rerankd_server(Path(folder), arguments.registry, **_ENVIRONMENT) as server,
    ):
        wait_until_ready(server)
        costs = run(measure(server, bodies, size=round(min(arguments.megabytes, 60.0) * _MIB)))
    worst = sorted(costs, key=lambda cost: max(cost.memory_beyond, cost.loop_ms / MOST_LOOP_MS), reverse=True)
    return conclude(
        claims_of(costs), arguments, {f"worst {n}": cost for n, cost in enumerate(map(str, worst[:_SHOWN]), 1)}
    )


if __name__ == "__main__":
    sys.exit(main())
