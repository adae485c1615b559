"""Closed-loop load: N clients that each send their next request when the last one is answered.

    python -m loadtest.closed_loop [--url http://127.0.0.1:8000] [--clients 1 8 32] [--seconds 20]

Without a URL it starts `rerankd serve` on a free loopback port, without a cache, and stops it afterwards. Every request
is new, so that nothing is answered from a cache. Prints a table and, with --output, writes JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import httpx

from loadtest.texts import Workload, make_requests

_START_TIMEOUT_S = 60.0
_REQUESTS_MADE = 2000


@dataclass(frozen=True, slots=True)
class Measurement:
    clients: int
    requests: int
    failures: int
    pairs_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def main() -> None:
    arguments = _parse()
    if arguments.url:
        measurements = asyncio.run(_measure_all(arguments.url, arguments))
    else:
        with started_server() as url:
            measurements = asyncio.run(_measure_all(url, arguments))
    _print(measurements)
    if arguments.output:
        report = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "documents": arguments.documents,
            "measurements": [asdict(measurement) for measurement in measurements],
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    if any(measurement.failures for measurement in measurements):
        sys.exit(1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; default: start one")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--documents", type=int, default=30, help="documents a request")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of clients, at most 300")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    arguments.seconds = min(arguments.seconds, 300.0)
    return arguments


@contextmanager
def started_server() -> Iterator[str]:
    """`rerankd serve` with the shipped model and without a cache, ready to answer; yields its URL."""
    port = _free_port()
    environment = {**os.environ, "RERANKD_CACHE_URL": "none://", "RERANKD_LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the server did not become ready; run `rerankd serve` to see why")


async def _measure_all(url: str, arguments: argparse.Namespace) -> list[Measurement]:
    bodies = iter(make_requests(Workload(documents=arguments.documents), count=_REQUESTS_MADE, seed=time.time_ns()))
    limits = httpx.Limits(max_connections=max(arguments.clients))
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await _measure(client, islice(bodies, 16), clients=4, seconds=3, documents=arguments.documents)
        return [
            await _measure(client, bodies, clients=clients, seconds=arguments.seconds, documents=arguments.documents)
            for clients in arguments.clients
        ]


async def _measure(
    client: httpx.AsyncClient, bodies: Iterator[dict[str, object]], *, clients: int, seconds: float, documents: int
) -> Measurement:
    started = time.perf_counter()
    latencies: list[float] = []
    failures = 0

    async def one_client() -> None:
        nonlocal failures
        while time.perf_counter() - started < seconds and (body := next(bodies, None)) is not None:
            sent = time.perf_counter()
            answer = await client.post("/v2/rerank", json=body)
            latencies.append(time.perf_counter() - sent)
            failures += answer.status_code != 200

    await asyncio.gather(*(one_client() for _ in range(clients)))
    elapsed = time.perf_counter() - started
    return Measurement(
        clients=clients,
        requests=len(latencies),
        failures=failures,
        pairs_per_s=round(len(latencies) * documents / elapsed, 1),
        p50_ms=round(_percentile(latencies, 50), 1),
        p95_ms=round(_percentile(latencies, 95), 1),
        p99_ms=round(_percentile(latencies, 99), 1),
    )


def _percentile(latencies: Sequence[float], percent: int) -> float:
    if len(latencies) < 2:
        return 1000 * sum(latencies)
    return 1000 * statistics.quantiles(latencies, n=100, method="inclusive")[percent - 1]


def _print(measurements: Sequence[Measurement]) -> None:
    print(f"{'clients':>8}{'requests':>10}{'failed':>8}{'pairs/s':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}")
    for one in measurements:
        print(
            f"{one.clients:>8}{one.requests:>10}{one.failures:>8}{one.pairs_per_s:>10}"
            f"{one.p50_ms:>10}{one.p95_ms:>10}{one.p99_ms:>10}"
        )


if __name__ == "__main__":
    main()
