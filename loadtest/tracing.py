"""What traces cost: CPU time of the whole process for one request, with traces and without, in turns.

    python -m loadtest.tracing [--seconds 60]

Every request is traced (OTEL_TRACES_SAMPLER's default) and sent to a receiver in this process. CPU time counts what the
export costs too, and not what the machine does meanwhile. The turns are over an engine that costs nothing: passes of a
real one vary by more than traces cost. What a request costs over the registry's engine is measured beside them. Without
traces, the places where spans would begin cost one look-up each; that is timed by itself.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from statistics import median
from threading import Thread
from timeit import timeit

import httpx

from loadtest.claims import Claim, conclude, parser, served
from loadtest.free_service import free_registry, without_weights
from loadtest.servers import Server, free_port, running, wait_until_ready
from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.telemetry.spans import traced
from rerankd.tools.benchmark.workload import Body, Shape, Workload

_DOCUMENTS = 30
_REQUESTS = 4
_REQUESTS_OVER_ENGINE = 40
_BATCH_TOKENS = 2048
_LOOK_UPS = 100_000
# OpenTelemetry sends what has gathered every five seconds.
_EXPORTED_AFTER_S = 6
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


@contextmanager
def over_free_engine(**environment: str) -> Iterator[Server]:
    """The service over the shipped model's tokenizer and the free engine, ready."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = without_weights(SHIPPED_REGISTRY.parent / "minilm-qa", folder / "model")
        (folder / "registry.toml").write_text(free_registry(model, batch_tokens=_BATCH_TOKENS), encoding="utf-8")
        port = free_port()
        serve = ["serve", "--port", str(port), "--registry", str(folder / "registry.toml")]
        settings = {"RERANKD_CACHE_URL": "none://", "RERANKD_LOG_LEVEL": "WARNING", **environment}
        command = [sys.executable, "-m", "loadtest.free_service", *serve]
        with running(command, port, folder / "log", settings) as server:
            wait_until_ready(server)
            yield server


def cpu_s(server: Server) -> float:
    """CPU seconds of a process's threads so far, by the scheduler's count, which is finer than a tick."""
    threads = Path(f"/proc/{server.process.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


def spent_s(server: Server, bodies: Sequence[Body]) -> float:
    """CPU seconds of a request, over these one after the other."""
    before = cpu_s(server)
    for body in bodies:
        httpx.post(f"{server.url}/v2/rerank", content=body.content, timeout=60).raise_for_status()
    return (cpu_s(server) - before) / len(bodies)


def spent_in_turns(servers: Sequence[Server], workload: Iterator[Body], *, seconds: float) -> list[list[float]]:
    """CPU seconds of a request on each server, turn by turn; at last those of the whole time, with what the servers do
    between their turns. Traces are sent then: the turns alone would leave the export out.
    """
    begun = [cpu_s(server) for server in servers]
    turns: list[list[float]] = []
    requests = 0
    end = time.monotonic() + seconds
    # Short turns with the same requests: what else runs on the machine then weighs on both alike.
    while time.monotonic() < end:
        bodies, turn = [*islice(workload, _REQUESTS)], dict.fromkeys(servers, 0.0)
        for server in servers if len(turns) % 2 else reversed(servers):
            turn[server] = spent_s(server, bodies)
        turns.append([turn[server] for server in servers])
        requests += len(bodies)
    time.sleep(_EXPORTED_AFTER_S)
    whole = [(cpu_s(server) - before) / requests for server, before in zip(servers, begun, strict=True)]
    return [*turns, whole]


def main() -> int:
    options = parser(__doc__, seconds=60)
    arguments = options.parse_args()
    workload = iter(Workload(Shape((_DOCUMENTS,)), seed=time.time_ns()))
    with served(arguments.registry) as server:
        spent_s(server, [*islice(workload, 10)])
        of_request = spent_s(server, [*islice(workload, _REQUESTS_OVER_ENGINE)])
    with (
        receiver() as url,
        over_free_engine() as without,
        over_free_engine(RERANKD_TRACES="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=url) as with_traces,
    ):
        for server in (without, with_traces):
            spent_s(server, [*islice(workload, 10)])
        *turns, (off, on) = spent_in_turns((without, with_traces), workload, seconds=arguments.seconds)
    of_turns = median(traced_s - plain_s for plain_s, traced_s in turns)
    look_ups_s = _PLACES * timeit(lambda: traced("name"), number=_LOOK_UPS) / _LOOK_UPS
    claims = [
        Claim("CPU ms of a request", 1000 * of_request),
        Claim("the same over the free engine", 1000 * off),
        Claim("CPU ms that traces add to it", 1000 * (on - off)),
        Claim("CPU ms that traces add to it, median of turns without the export", 1000 * of_turns),
        Claim("traces / CPU time of a request", (on - off) / of_request, "<=", 0.02),
        Claim("look-ups of a request without traces / its CPU time", look_ups_s / of_request, "<=", 0.0005),
    ]
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
