"""Measures how large requests slow down small ones, and how a busy API key slows down a quiet one.

    python -m loadtest.fairness [--seconds 20] [--rounds 3]

Small requests (10 documents, one client) alone, then beside clients that send 1,000-document requests without a pause;
then a client with a key of its own alone, and beside ten clients of another key. Blocks alternate, so that a drift of
the machine's speed meets both sides. Prints the ratio of latencies for each and whether it is within its limit.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadtest.claims import Claim, conclude, parser, run, served
from rerankd.tools.benchmark.connection import Target
from rerankd.tools.benchmark.load import Sample, Window, closed_loop
from rerankd.tools.benchmark.measurement import latencies_ms
from rerankd.tools.benchmark.workload import Shape, Workload


@dataclass(slots=True)
class _Blocks:
    """Samples of the measured client, from blocks alone and blocks beside others."""

    alone: list[Sample] = field(default_factory=list)
    beside: list[Sample] = field(default_factory=list)
    failed: int = 0

    def ratio(self, percentile: str) -> float:
        """NaN if either side has no answers."""
        return latencies_ms(self.beside)[percentile] / latencies_ms(self.alone)[percentile]


class Load(Protocol):
    """Load that runs beside the measured client."""

    async def load(self, window: Window) -> object:
        """Load the service until the window is over."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of one API key that send requests of one size."""

    target: Target
    count: int
    documents: int

    async def load(self, window: Window) -> list[Sample]:
        bodies = Workload(Shape((self.documents,)), seed=time.time_ns())
        measured = await closed_loop(self.target, bodies, window, clients=self.count)
        return [sample for sample in measured.samples if measured.opened <= sample.finished < measured.closed]


async def compare(measured: Clients, others: Load, *, window: Window, rounds: int) -> _Blocks:
    """Alternate blocks of the measured clients alone and beside the others, the first place too."""
    blocks = _Blocks()
    for number in range(rounds):
        for beside in (False, True) if number % 2 == 0 else (True, False):
            samples = await _block(measured, others if beside else None, window)
            (blocks.beside if beside else blocks.alone).extend(sample for sample in samples if sample.answered)
            blocks.failed += sum(not sample.answered for sample in samples)
    return blocks


async def _block(measured: Clients, others: Load | None, window: Window) -> Sequence[Sample]:
    if others is None:
        return await measured.load(window)
    samples, _ = await asyncio.gather(measured.load(window), others.load(window))
    return samples


async def measure(url: str, *, window: Window, rounds: int, large: int, large_clients: int) -> list[Claim]:
    quiet, busy = (Target.from_url(url, headers={"Authorization": f"Bearer {key}"}) for key in ("quiet", "busy"))
    sizes = await compare(Clients(quiet, 1, 10), Clients(quiet, large_clients, large), window=window, rounds=rounds)
    keys = await compare(Clients(quiet, 1, 30), Clients(busy, 10, 30), window=window, rounds=rounds)
    return [
        Claim(f"10 documents: p99 beside {large}-document requests / alone", sizes.ratio("p99"), "<=", 3.0),
        Claim("10 documents: p50 beside / alone", sizes.ratio("p50")),
        Claim("10 documents: p99 alone, ms", latencies_ms(sizes.alone)["p99"]),
        Claim("quiet key: p95 beside ten busy clients / alone", keys.ratio("p95"), "<=", 1.5),
        Claim("quiet key: p95 alone, ms", latencies_ms(keys.alone)["p95"]),
        Claim("requests that failed", sizes.failed + keys.failed, "<=", 0),
    ]


def main() -> int:
    options = parser(__doc__, seconds=20)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--large", type=int, default=1000, help="documents of a large request")
    options.add_argument("--large-clients", type=int, default=2)
    arguments = options.parse_args()
    window = Window(warmup_s=min(2.0, arguments.seconds / 4), seconds=arguments.seconds)
    with served(arguments.registry, RERANKD_API_KEYS="quiet,busy") as server:
        claims = run(
            measure(
                server.url,
                window=window,
                rounds=arguments.rounds,
                large=arguments.large,
                large_clients=arguments.large_clients,
            )
        )
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
