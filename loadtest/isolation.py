"""Measures how much an API key suffers from another key that abuses a part that both share.

    python -m loadtest.isolation [--seconds 6] [--rounds 1] [--parts engine parsing ...]

A client of a quiet key sends 30 documents at a time, alone and then beside a busy key that floods one part: unfinished
bodies, bodies that are no JSON at their end, texts that are tokenized and refused, texts of four times the tokens that
are expected, large requests, clients that hang up, large answers. Blocks alternate, so that a drift of the machine's
speed meets both sides. Prints the ratio of 95th percentiles for each part and whether it is within its limit.

The clients of the busy key run in a process of their own with a low priority: what clients take of a machine is nothing
that a service could share out. They still take some of it, and the baseline is the quiet key without them, so a ratio
is too high by that much rather than too low. Use a machine that does nothing else.

Also prints the CPU time of both sides in cores, by thread: the event loop, the passes, the threads that read and write
texts, and the busy clients. These tell on a busy machine too where a ratio comes from. Linux only; 0 elsewhere.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from random import Random
from time import perf_counter, process_time
from typing import Final
from urllib.parse import urlsplit

from loadtest.claims import Claim, conclude, parser, run, served
from loadtest.fairness import Clients, compare
from loadtest.servers import THREADS, Server, cpu_s_of
from rerankd.tools.benchmark.connection import Target
from rerankd.tools.benchmark.load import Window
from rerankd.tools.benchmark.measurement import latencies_ms

_LIMIT: Final = 1.5
_BUSY: Final = "busy"
# A refused client tries again after this time and ignores Retry-After, but does not flood connections.
_PAUSE_S: Final = 0.02
_NICE: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """Clients of the busy key that send one request again and again. They go away after `patience_s`; `missing_bytes`
    of the body are announced and never sent.
    """

    url: str
    body: bytes
    clients: int
    patience_s: float = 120.0
    missing_bytes: int = 0

    async def load(self, window: Window) -> None:
        """Load the service until the window is over."""
        clients = [asyncio.ensure_future(self._ask_for_ever()) for _ in range(self.clients)]
        await asyncio.wait(clients, timeout=window.warmup_s + window.seconds, return_when=asyncio.FIRST_EXCEPTION)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _ask_for_ever(self) -> None:
        while True:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(self.patience_s):
                    await self._ask()
            await asyncio.sleep(_PAUSE_S)

    async def _ask(self) -> None:
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            size = len(self.body) + self.missing_bytes
            head = f"POST /v2/rerank HTTP/1.1\r\nHost: x\r\nApi-Key: {_BUSY}\r\nContent-Length: {size}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + self.body)
            await writer.drain()
            while await reader.read(1 << 20):
                pass
        finally:
            writer.close()


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """The load of another process. `cores` is CPU time per second while it ran: the service's, and that of the load."""

    worst: Worst
    processes: Executor
    service: int
    cores: dict[str, float] = field(default_factory=dict)

    async def load(self, window: Window) -> None:
        """Load the service until the window is over."""
        started, before = perf_counter(), cpu_s_of(self.service)
        busy_s = await asyncio.get_running_loop().run_in_executor(self.processes, _load, self.worst, window)
        after, seconds = cpu_s_of(self.service), perf_counter() - started
        self.cores.update({name: (after[name] - before[name]) / seconds for name in THREADS})
        self.cores["busy clients"] = busy_s / seconds


def _load(worst: Worst, window: Window) -> float:
    """The CPU time that it took."""
    before = process_time()
    run(worst.load(window))
    return process_time() - before


def _body(documents: Sequence[str], **fields: str) -> bytes:
    return json.dumps({"query": "what is asked for", "documents": documents, **fields}).encode()


def worst_of(url: str) -> dict[str, Worst]:
    """The worst load of the busy key on each part, by the part's name."""
    rng = Random(0)
    words = [f"word{number}" for number in range(1000)]

    def texts(count: int, *, length: int) -> list[str]:
        return [" ".join(rng.choices(words, k=length)) for _ in range(count)]

    # one token each, while words have six characters per token
    dense = [" ".join(rng.choices("!?%&$#+*", k=200)) for _ in range(3000)]
    usual, long = texts(1000, length=100), texts(1000, length=200)
    return {
        "body bytes": Worst(url=url, body=b" " * (40 << 20), clients=6, missing_bytes=1 << 20),
        "parsing": Worst(url=url, body=_body([*long, *long])[:-1], clients=8),
        "tokenizing": Worst(url=url, body=_body([*long, "word " * 4000], truncation="error"), clients=8),
        "admission": Worst(url=url, body=_body(dense), clients=20),
        "engine": Worst(url=url, body=_body(usual), clients=10),
        "hanging up": Worst(url=url, body=_body(long), clients=8, patience_s=0.25),
        "answers": Worst(url=url, body=_body([""] * 10_000), clients=8),
    }


async def measure(
    server: Server, parts: Sequence[str], *, window: Window, rounds: int, processes: Executor
) -> list[Claim]:
    quiet = Clients(Target.from_url(server.url, headers={"Authorization": "Bearer quiet"}), 1, 30)
    claims, failed = [], 0
    for part, worst in worst_of(server.url).items():
        if part in parts:
            others = _Elsewhere(worst, processes, server.process.pid)
            blocks = await compare(quiet, others, window=window, rounds=rounds)
            alone_ms = latencies_ms(blocks.alone)["p95"]
            claims.append(Claim(f"{part}: p95 beside a busy key / alone", blocks.ratio("p95"), "<=", _LIMIT))
            claims.append(Claim(f"{part}: p95 alone, ms", alone_ms))
            claims += [Claim(f"{part}: {threads}, cores", cores) for threads, cores in others.cores.items()]
            failed += blocks.failed
    return [*claims, Claim("requests of the quiet key that failed or were refused", failed, "<=", 0)]


def main() -> int:
    options = parser(__doc__, seconds=6)
    known = list(worst_of(""))
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--parts", nargs="+", choices=known, default=known)
    arguments = options.parse_args()
    window = Window(warmup_s=min(2.0, arguments.seconds / 2), seconds=arguments.seconds)
    with (
        served(arguments.registry, RERANKD_API_KEYS=f"quiet,{_BUSY}") as server,
        ProcessPoolExecutor(1, get_context("spawn"), initializer=os.nice, initargs=(_NICE,)) as processes,
    ):
        claims = run(measure(server, arguments.parts, window=window, rounds=arguments.rounds, processes=processes))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
