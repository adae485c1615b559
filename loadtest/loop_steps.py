"""Measures the longest steps of the event loop for requests of 10,000 documents, during which other clients wait. After
each answered request, another one is cancelled half-way.

    python -m loadtest.loop_steps [--documents 10000] [--requests 3]

The service runs in this process, on asyncio's own loop (uvloop cannot be watched from inside), and every step of the
loop is timed, in CPU time of its thread: what the machine does meanwhile does not count. A request's documents are
scored as well, so use a small model, or have patience.
"""

import asyncio
import os
import signal
import sys
from asyncio import events
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from threading import Thread
from time import perf_counter, sleep, thread_time

import httpx

from loadtest.claims import Claim, conclude, parser
from loadtest.servers import free_port
from rerankd.api.server import serve
from rerankd.config.settings import Settings
from rerankd.tools.benchmark.workload import Shape, Workload

_LIMIT_MS = 5.0
_TIMEOUT_S = 900.0
# The rest of the work for a cancelled request takes less.
_AFTERMATH_S = 1.0


@dataclass(slots=True)
class _Steps:
    watched: bool = False
    given_up: int = 0
    milliseconds: list[float] = field(default_factory=list)


@contextmanager
def timed_steps() -> Iterator[_Steps]:
    """Time every callback that an asyncio loop of this process runs; there is no public way to see them."""
    steps, untimed = _Steps(), events.Handle._run  # noqa: SLF001

    def timed(self: events.Handle) -> None:
        started = thread_time()
        untimed(self)
        if steps.watched:
            steps.milliseconds.append(1000 * (thread_time() - started))

    events.Handle._run = timed  # type: ignore[method-assign] # noqa: SLF001
    try:
        yield steps
    finally:
        events.Handle._run = untimed  # type: ignore[method-assign] # noqa: SLF001


def ask(url: str, steps: _Steps, statuses: list[int], *, documents: int, requests: int) -> None:
    """Send the requests once the service is ready, and end it as an operator would."""
    try:
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
            while not _is_ready(client):
                sleep(0.1)
            others = iter(Workload(Shape((documents,)), seed=1))
            for body in islice(Workload(Shape((documents,)), seed=0), requests):
                steps.watched = True
                sent = perf_counter()
                answer = client.post("/v2/rerank", content=body.content)
                statuses.append(answer.status_code)
                steps.given_up += _give_up(url, next(others).content, after_s=(perf_counter() - sent) / 2)
                steps.watched = False
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _give_up(url: str, content: bytes, *, after_s: float) -> bool:
    """False if it was answered earlier."""
    try:
        httpx.post(url + "/v2/rerank", content=content, timeout=httpx.Timeout(_TIMEOUT_S, read=after_s))
    except httpx.ReadTimeout:
        sleep(_AFTERMATH_S)
        return True
    return False


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def main() -> int:
    options = parser(__doc__, seconds=1)
    options.add_argument("--documents", type=int, default=10_000)
    options.add_argument("--requests", type=int, default=3)
    arguments = options.parse_args()
    settings = Settings(
        port=free_port(), registry=arguments.registry, request_timeout_s=_TIMEOUT_S, log_level="WARNING"
    )
    statuses: list[int] = []
    with timed_steps() as steps:
        wanted = {"documents": arguments.documents, "requests": arguments.requests}
        asking = Thread(target=ask, args=(f"http://127.0.0.1:{settings.port}", steps, statuses), kwargs=wanted)
        asking.start()
        asyncio.run(serve(settings))
        asking.join()
    longest = sorted(steps.milliseconds, reverse=True)
    claims = [
        Claim("requests answered", statuses.count(200), ">=", arguments.requests),
        Claim("requests given up", steps.given_up),
        Claim("longest step of the event loop, ms", longest[0] if longest else float("nan"), "<=", _LIMIT_MS),
        Claim("steps beyond that, for each request", sum(step > _LIMIT_MS for step in longest) / arguments.requests),
        Claim("all steps, s for each request", sum(longest) / 1000 / arguments.requests),
    ]
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
