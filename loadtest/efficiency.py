"""Compares the service with its engine: pairs/s over HTTP and of the engine alone, alternately in one run.

    python -m loadtest.efficiency [--seconds 10] [--rounds 3]

The engine alone gets the same kind of texts, tokenized beforehand, sorted by length and cut into batches of the
service's budget, from as many threads as it has workers: nothing over HTTP can be faster. One client's median latency
is compared with the engine's own time for such a request, all threads together.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from statistics import median

import orjson

from loadtest.claims import Claim, conclude, parser, run, served
from rerankd.config.registry import read_registry
from rerankd.config.settings import Settings
from rerankd.engines.base import LogitsEngine, computed_here, cut_by_length
from rerankd.scorers.base import (
    AnyBlockScorer,
    AnyComparisonScorer,
    AnyGroupScorer,
    AnyListScorer,
    AnyPairScorer,
    AnyVectorScorer,
    EncodedPairs,
)
from rerankd.serving.assembly import load_parts
from rerankd.tasks.encoding import Encoding
from rerankd.tools.benchmark.connection import Target
from rerankd.tools.benchmark.load import Window, closed_loop
from rerankd.tools.benchmark.measurement import measure
from rerankd.tools.benchmark.workload import Shape, Workload

DOCUMENTS = 30
REQUESTS = 40


class _PairEncoding:
    """How a scorer of pairs encodes; other scorers are not supported."""

    def pairs(self, scorer: AnyPairScorer, /) -> Callable[..., EncodedPairs[Encoding]]:
        return scorer.encode

    def lists(self, scorer: AnyListScorer, /) -> Callable[..., EncodedPairs[Encoding]]:
        raise SystemExit(f"{scorer.fingerprint} is no scorer of pairs")

    def vectors(self, scorer: AnyVectorScorer, /) -> Callable[..., EncodedPairs[Encoding]]:
        raise SystemExit(f"{scorer.fingerprint} is no scorer of pairs")

    def blocks(self, scorer: AnyBlockScorer, /) -> Callable[..., EncodedPairs[Encoding]]:
        raise SystemExit(f"{scorer.fingerprint} is no scorer of pairs")

    def groups(self, scorer: AnyGroupScorer, /) -> Callable[..., EncodedPairs[Encoding]]:
        raise SystemExit(f"{scorer.fingerprint} is no scorer of pairs")

    def comparisons(self, scorer: AnyComparisonScorer, /) -> Callable[..., EncodedPairs[Encoding]]:
        raise SystemExit(f"{scorer.fingerprint} is no scorer of pairs")


class EngineAlone:
    """The registry's default model without a service around it."""

    def __init__(self, settings: Settings) -> None:
        spec = read_registry(settings.registry).only([None]).model[0]
        parts = load_parts(spec, settings)
        self._engine: LogitsEngine = computed_here(parts.engine)
        self._encode = parts.scorer.by_kind(_PairEncoding())
        preferred = parts.engine.preferred_batch
        self._limits = replace(preferred, tokens=parts.read.spec.batch_tokens or preferred.tokens)
        self._pool = ThreadPoolExecutor(parts.engine.workers)

    def requests(self, *, seed: int) -> list[list[Encoding]]:
        """Tokenized requests of the reference workload."""
        bodies = [orjson.loads(body.content) for body in islice(Workload(Shape((DOCUMENTS,)), seed=seed), REQUESTS)]
        return [
            list(self._encode(body["query"], body["documents"], max_document_tokens=None).encodings) for body in bodies
        ]

    def seconds(self, encodings: Sequence[Encoding]) -> float:
        """Seconds that all threads together take for this many pairs, in the best order."""
        started = time.perf_counter()
        list(self._pool.map(self._engine.run, cut_by_length(encodings, self._limits)))
        return time.perf_counter() - started


async def compare(alone: EngineAlone, url: str, *, window: Window, rounds: int) -> list[Claim]:
    """Alternate the engine alone with one, eight and thirty-two clients."""
    target, clients = Target.from_url(url), (1, 8, 32)
    limit: list[float] = []
    single_ms: list[float] = []
    speed: dict[int, list[float]] = {count: [] for count in clients}
    p50_ms: dict[int, list[float]] = {count: [] for count in clients}
    for number in range(rounds):
        requests = alone.requests(seed=time.time_ns())
        pairs = [encoding for request in requests for encoding in request]
        limit.append(len(pairs) / alone.seconds(pairs))
        single_ms += [1000 * alone.seconds(request) for request in requests[:15]]
        for count in clients if number % 2 == 0 else clients[::-1]:
            bodies = Workload(Shape((DOCUMENTS,)), seed=time.time_ns())
            measured = measure(await closed_loop(target, bodies, window, clients=count))
            speed[count].append(measured.pairs_per_s)
            p50_ms[count].append(measured.latency_ms["p50"])
        await asyncio.sleep(0.1)
        requests = alone.requests(seed=time.time_ns())
        pairs = [encoding for request in requests for encoding in request]
        limit.append(len(pairs) / alone.seconds(pairs))
    best = median(limit)
    return [
        Claim("the engine alone, pairs/s", best),
        *(Claim(f"{count} clients, pairs/s", median(speed[count])) for count in clients),
        Claim("8 clients / the engine alone", median(speed[8]) / best, ">=", 0.9),
        Claim("32 clients / the engine alone", median(speed[32]) / best, ">=", 0.9),
        Claim("one client, p50 / the engine's own time", median(p50_ms[1]) / median(single_ms), "<=", 1.25),
        Claim(
            "8 clients, p50 / (work in the system / limit)", median(p50_ms[8]) / (8000 * DOCUMENTS / best), "<=", 1.15
        ),
    ]


def main() -> int:
    options = parser(__doc__, seconds=10)
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    window = Window(warmup_s=min(2.0, arguments.seconds / 4), seconds=arguments.seconds)
    alone = EngineAlone(Settings(registry=arguments.registry))
    with served(arguments.registry) as server:
        claims = run(compare(alone, server.url, window=window, rounds=arguments.rounds))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
