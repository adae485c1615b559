"""What traces cost: CPU time of the whole process for one request, with traces and without, in turns.

    python -m loadtest.tracing [--seconds 3] [--rounds 8]

Every request is traced (OTEL_TRACES_SAMPLER's default) and sent to a receiver in this process. CPU time counts what the
export costs too, and not what the machine does meanwhile. Without traces, the places where spans would begin cost one
look-up each; that is timed by itself.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from threading import Thread
from timeit import timeit

import httpx
import psutil

from loadtest.claims import Claim, conclude, parser, served
from loadtest.servers import Server
from rerankd.telemetry.spans import traced
from rerankd.tools.benchmark.workload import Shape, Workload

_DOCUMENTS = 30
_LOOK_UPS = 100_000
# In one request for one model: parse, get from the cache, tokenize, put into it, write; the rest is one `if` each.
_PLACES = 5


@contextmanager
def receiver() -> Iterator[str]:
    """The URL of a collector that throws away what it gets."""

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def cpu_s(server: Server, *, seconds: float, seed: int) -> float:
    """CPU seconds of a request, over as many as one client sends in this time."""
    process, bodies = psutil.Process(server.process.pid), Workload(Shape((_DOCUMENTS,)), seed=seed)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        end, sent, before = time.monotonic() + seconds, 0, process.cpu_times()
        for body in islice(bodies, 10**9):
            client.post("/v2/rerank", content=body.content).raise_for_status()
            sent += 1
            if time.monotonic() > end:
                break
        after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / sent


def main() -> int:
    options = parser(__doc__, seconds=3)
    options.add_argument("--rounds", type=int, default=8)
    arguments = options.parse_args()
    with (
        receiver() as url,
        served(arguments.registry) as without,
        served(arguments.registry, RERANKD_TRACES="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=url) as with_traces,
    ):
        both = [without, with_traces]
        for server in both:
            cpu_s(server, seconds=arguments.seconds / 2, seed=0)
        cpu: dict[Server, list[float]] = {server: [] for server in both}
        for number in range(arguments.rounds):
            for server in both[:: 1 if number % 2 else -1]:
                cpu[server].append(cpu_s(server, seconds=arguments.seconds, seed=number + 1))
    # The quietest rounds of both: what else runs on the machine adds CPU time too, by way of caches and shared cores.
    off, on = min(cpu[without]), min(cpu[with_traces])
    look_ups_s = _PLACES * timeit(lambda: traced("name"), number=_LOOK_UPS) / _LOOK_UPS
    claims = [
        Claim("without traces, CPU ms a request", 1000 * off),
        Claim("with traces, CPU ms a request", 1000 * on),
        Claim("with traces / without", on / off, "<=", 1.02),
        Claim("look-ups of a request without traces / its CPU time", look_ups_s / off, "<=", 0.0005),
    ]
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
