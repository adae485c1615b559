"""Checks whether a request of 10,000 documents blocks the service for other clients.

    python -m loadtest.loop_stall [--documents 10000] [--seconds 60]

Sends one such request after another beside two clients with small ones, and polls /health, which needs
only the event loop. So its slowest answer is the longest time that the loop was blocked, plus the machine's own delays,
which the same measurement without a large request shows. If one takes longer than the limit and py-spy is
installed, a dump of what every thread was doing then is printed. Resident memory is watched too.
"""

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from loadtest.claims import Claim, conclude, parser, run, served
from loadtest.servers import Server
from rerankd.tools.benchmark.connection import Connection, Target
from rerankd.tools.benchmark.load import Run, Window, closed_loop
from rerankd.tools.benchmark.measurement import latencies_ms
from rerankd.tools.benchmark.workload import Shape, Workload

_PAUSE_S = 0.002
_MEMORY_PAUSE_S = 0.05
_STALL_MS = 100.0


@dataclass(slots=True)
class _Watch:
    """The worst that was seen."""

    slowest_health_ms: float = 0.0
    max_bytes: int = 0
    dump: str = ""


@asynccontextmanager
async def _watching(server: Server) -> AsyncIterator[_Watch]:
    watch = _Watch(max_bytes=server.resident_bytes())
    tasks = [asyncio.create_task(task) for task in (_watch_health(server, watch), _watch_memory(server, watch))]
    try:
        yield watch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_health(server: Server, watch: _Watch) -> None:
    connection = Connection(Target.from_url(server.url))
    while True:
        sent = perf_counter()
        asking = asyncio.create_task(connection.get("/health"))
        done, _ = await asyncio.wait([asking], timeout=_STALL_MS / 1000)
        if not done and not watch.dump:
            watch.dump = await _dump(server.process.pid)
        answer = await asking
        watch.slowest_health_ms = max(watch.slowest_health_ms, 1000 * (answer.finished - sent))
        await asyncio.sleep(_PAUSE_S)


async def _dump(pid: int) -> str:
    """The stacks of a process's threads, if py-spy is installed."""
    program = shutil.which("py-spy")
    if program is None:
        return "py-spy is not installed: no dump of the stall"
    process = await asyncio.create_subprocess_exec(
        program, "dump", "--pid", str(pid), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return said.decode(errors="replace")


async def _watch_memory(server: Server, watch: _Watch) -> None:
    while True:
        watch.max_bytes = max(watch.max_bytes, server.resident_bytes())
        await asyncio.sleep(_MEMORY_PAUSE_S)


async def _load(server: Server, window: Window, *, documents: int, clients: int) -> Run:
    bodies = Workload(Shape((documents,)), seed=time.time_ns())
    return await closed_loop(Target.from_url(server.url), bodies, window, clients=clients)


async def measure(server: Server, *, window: Window, documents: int) -> tuple[list[Claim], _Watch]:
    async with _watching(server) as quiet:
        small_alone = await _load(server, window, documents=10, clients=2)
    async with _watching(server) as watch:
        large, small = await asyncio.gather(
            _load(server, window, documents=documents, clients=1),
            _load(server, window, documents=10, clients=2),
        )
    alone_ms, beside_ms = (
        latencies_ms([sample for sample in one.samples if sample.answered]) for one in (small_alone, small)
    )
    answered = sum(sample.answered for sample in large.samples)
    return [
        Claim(f"requests of {documents} documents answered", answered, ">=", 1),
        Claim("requests that failed", sum(not one.answered for one in (*large.samples, *small.samples)), "<=", 0),
        Claim("slowest /health beside them, ms", watch.slowest_health_ms, "<=", _STALL_MS),
        Claim("slowest /health beside small requests only, ms", quiet.slowest_health_ms),
        Claim("10 documents: p99 beside / without", beside_ms["p99"] / alone_ms["p99"]),
        Claim("peak memory beside / without", watch.max_bytes / quiet.max_bytes, "<=", 2.0),
        Claim("peak memory, MB", watch.max_bytes / 1e6),
    ], watch


def main() -> int:
    options = parser(__doc__, seconds=60)
    options.add_argument("--documents", type=int, default=10_000)
    arguments = options.parse_args()
    window = Window(warmup_s=0, seconds=arguments.seconds, timeout_s=600)
    with served(arguments.registry, RERANKD_REQUEST_TIMEOUT_S="600") as server:
        claims, watch = run(measure(server, window=window, documents=arguments.documents))
    return conclude(claims, arguments, {"during the first stall": watch.dump} if watch.dump else None)


if __name__ == "__main__":
    sys.exit(main())
