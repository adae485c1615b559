"""Measures the cost of the Redis cache, running, killed and hung, compared with a service without a cache.

    python -m loadtest.redis_outage [--clients 8] [--documents 10] [--blocks 6]

Starts two services with the shipped model on free loopback ports, one with a Redis of its own and one with
`none://`, sends blocks of requests to them in turn (every document is new: all misses, the cache's worst case), and
prints the ratio of median latencies. Redis is killed, started again and hung while requests are under way; a request
that fails ends the run with an error. Needs redis-server.
"""

import argparse
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import httpx

from loadtest.servers import Server, redis_server, rerankd_server, wait_until_ready
from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.tools.benchmark.workload import Body, Shape, Words, Workload

_RECOVERY_S = 3.0
_UNDER_WAY_S = 0.7


@dataclass(frozen=True, slots=True)
class Load:
    """Blocks of requests from a fixed number of clients; `documents` in each, never the same twice."""

    clients: int
    documents: int

    def block(self, server: Server, seeds: Iterator[int], *, rounds: int = 2) -> list[float]:
        """Latencies in seconds of `rounds` requests a client.

        Raises:
            httpx.HTTPStatusError: a request failed.
        """
        workload = Workload(Shape((self.documents,)), seed=next(seeds), words=Words(document=(35, 45)))
        with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(self.clients) as pool:

            def send(body: Body) -> float:
                started = time.perf_counter()
                client.post("/v2/rerank", content=body.content).raise_for_status()
                return time.perf_counter() - started

            return list(pool.map(send, islice(workload, rounds * self.clients)))


def main() -> None:
    arguments = _parse()
    load = Load(clients=arguments.clients, documents=arguments.documents)
    seeds = count(time.time_ns())
    with (
        tempfile.TemporaryDirectory() as name,
        redis_server(Path(name)) as redis,
        rerankd_server(Path(name), SHIPPED_REGISTRY, RERANKD_CACHE_URL="none://") as plain,
        rerankd_server(Path(name), SHIPPED_REGISTRY, RERANKD_CACHE_URL=f"redis://127.0.0.1:{redis.port}/0") as cached,
    ):
        for server in (plain, cached):
            wait_until_ready(server)
            load.block(server, seeds)
        _compare("alive", load, plain, cached, seeds, blocks=arguments.blocks)
        _break("killed", load, cached, redis, signal.SIGKILL, seeds)
        _compare("killed", load, plain, cached, seeds, blocks=arguments.blocks)
        redis.process.wait(timeout=10)
        with redis_server(Path(name), port=redis.port) as again:
            time.sleep(_RECOVERY_S)
            load.block(cached, seeds)
            _break("hung", load, cached, again, signal.SIGSTOP, seeds)
            _compare("hung", load, plain, cached, seeds, blocks=arguments.blocks)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=6, help="blocks a state, at most 50")
    arguments = parser.parse_args()
    arguments.blocks = min(arguments.blocks, 50)
    return arguments


def _break(state: str, load: Load, cached: Server, redis: Server, how: signal.Signals, seeds: Iterator[int]) -> None:
    """Send the signal while requests are under way, and say how long the slowest of them took."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(load.block, cached, seeds, rounds=4)
        time.sleep(_UNDER_WAY_S)
        redis.process.send_signal(how)
        latencies = running.result()
    print(f"{state} under way: {len(latencies)} requests, 0 failed, slowest {1000 * max(latencies):.0f} ms")


def _compare(state: str, load: Load, plain: Server, cached: Server, seeds: Iterator[int], *, blocks: int) -> None:
    """Alternate blocks, the first place too, so that a drift of the machine's speed meets both."""
    latencies: dict[Server, list[float]] = {plain: [], cached: []}
    for block in range(blocks):
        for server in (plain, cached) if block % 2 else (cached, plain):
            latencies[server] += load.block(server, seeds)
    without, with_redis = (statistics.median(latencies[server]) for server in (plain, cached))
    print(
        f"{state}: p50 without a cache {1000 * without:.1f} ms, with Redis {1000 * with_redis:.1f} ms, "
        f"ratio {with_redis / without:.3f} ({len(latencies[cached])} requests each, 0 failed)",
        flush=True,
    )


if __name__ == "__main__":
    main()
