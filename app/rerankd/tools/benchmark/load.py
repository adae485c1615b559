"""Two ways to load a server. Each returns a `Run`: the outcome and times of every request.

Closed loop: N clients that each send their next request when the last one is answered; shows the throughput at a
concurrency. Open loop: requests arrive as a Poisson process at a rate, however slow the server is, as users do; shows
the latency at an offered load. Its latencies count from the intended arrival, so that a request that had to wait for
the generator, or behind a stalled server, is not forgiven that wait ("coordinated omission").
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from random import Random
from time import perf_counter, process_time
from typing import Final, Literal

from rerankd.tools.benchmark.arrivals import in_time, poisson_arrivals
from rerankd.tools.benchmark.connection import Answer, Connection, ConnectionLost, Target
from rerankd.tools.benchmark.workload import Body

_PAUSE_WITHOUT_SERVER_S = 0.05
_RESULT: Final = b'"index"'

Mode = Literal["closed", "open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request. Times are `perf_counter()`'s. `outcome` is the HTTP status, or `incomplete` (200 without a result
    for each document), `timeout`, `connection`, or `left` (the client had no more patience).
    """

    intended: float
    sent: float
    finished: float
    documents: int
    outcome: str
    server_timing: bytes = b""
    retry_after_s: float | None = None

    @property
    def answered(self) -> bool:
        return self.outcome == "200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The samples of one repetition, warm-up included. The measured window is [opened, closed); `cpu_s` is CPU
    time of this process within it.
    """

    mode: Mode
    samples: Sequence[Sample]
    opened: float
    closed: float
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Seconds of load before measuring, and of measuring; a request may take `timeout_s`.

    In a closed loop the load before goes on, for `longest_warmup_s` at most, until every client has had an answer: who
    works on many requests at a time answers few at first, and is not slow. And there the last requests may be given up
    when the window closes, so that a slow server cannot hold the run up.
    """

    warmup_s: float
    seconds: float
    longest_warmup_s: float = 60.0
    timeout_s: float = 120.0
    waits_for_last: bool = True


# Seconds that a client waits before it disconnects; None means the window's timeout.
Patience = Callable[[], float | None]


def patient() -> None:
    """The patience of a client that waits as long as the window allows."""


async def closed_loop(
    target: Target, bodies: Iterator[Body], window: Window, *, clients: int, patience: Patience = patient
) -> Run:
    """Load with a number of clients. Answers after the window do not count."""
    samples: list[Sample] = []
    async with _measured(window, clients=clients) as clock:

        async def client() -> None:
            connection = Connection(target)
            try:
                while perf_counter() < clock.closes:
                    sample = await _exchange(connection, next(bodies), perf_counter(), window, patience())
                    samples.append(sample)
                    clock.had_answer(asyncio.current_task())
                    if sample.outcome == "connection":
                        await asyncio.sleep(_PAUSE_WITHOUT_SERVER_S)
            finally:
                connection.close()

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(client()) for _ in range(clients)]
            if not window.waits_for_last:
                await clock.closed.wait()
                for task in running:
                    task.cancel()
    return clock.run("closed", samples)


async def open_loop(
    target: Target,
    bodies: Iterator[Body],
    window: Window,
    *,
    rate: float,
    seed: int,
    connections: int = 4096,
    patience: Patience = patient,
) -> Run:
    """Load with `rate` requests per second. Requests beyond `connections` wait, which counts as latency."""
    samples: list[Sample] = []
    arrivals = poisson_arrivals(rate, window.warmup_s + window.seconds, Random(seed))
    async with _measured(window) as clock, _pool(target, size=connections) as idle_connection:

        async def one(body: Body, intended: float) -> None:
            async with idle_connection() as connection:
                samples.append(await _exchange(connection, body, intended, window, patience()))

        async with asyncio.TaskGroup() as requests:
            async for intended in in_time(clock.started, arrivals):
                requests.create_task(one(next(bodies), intended))
    return clock.run("open", samples)


class _Clock:
    """When the measured window opens and closes, and the CPU time between."""

    def __init__(self, window: Window, *, clients: int) -> None:
        self.started = perf_counter()
        self.opens = self.closes = inf
        self.closed = asyncio.Event()
        self._window = window
        self._clients = clients
        self._had_answers: set[object] = set()
        self._all_had_answers = asyncio.Event()
        self._cpu_s = 0.0
        if not clients:
            self._all_had_answers.set()

    def had_answer(self, client: object) -> None:
        """Note that a client got an answer, or stopped waiting."""
        self._had_answers.add(client)
        if len(self._had_answers) == self._clients:
            self._all_had_answers.set()

    async def run_down(self) -> None:
        """Open the window and close it again."""
        await asyncio.sleep(self._window.warmup_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._window.longest_warmup_s - self._window.warmup_s):
                await self._all_had_answers.wait()
        self.opens = perf_counter()
        self.closes = self.opens + self._window.seconds
        at_opening = process_time()
        await asyncio.sleep(self._window.seconds)
        self._cpu_s = process_time() - at_opening
        self.closed.set()

    def run(self, mode: Mode, samples: Sequence[Sample]) -> Run:
        return Run(mode=mode, samples=samples, opened=self.opens, closed=self.closes, cpu_s=self._cpu_s)


@asynccontextmanager
async def _measured(window: Window, *, clients: int = 0) -> AsyncIterator[_Clock]:
    """Opens the window when each of a closed loop's `clients` has had an answer."""
    clock = _Clock(window, clients=clients)
    running = asyncio.create_task(clock.run_down())
    try:
        yield clock
        await running
    finally:
        running.cancel()


@asynccontextmanager
async def _pool(target: Target, *, size: int) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[Connection]]]:
    """A pool of at most `size` connections."""
    idle: list[Connection] = []
    free = asyncio.Semaphore(size)

    @asynccontextmanager
    async def lent() -> AsyncIterator[Connection]:
        async with free:
            connection = idle.pop() if idle else Connection(target)
            try:
                yield connection
            finally:
                idle.append(connection)

    try:
        yield lent
    finally:
        for connection in idle:
            connection.close()


async def _exchange(
    connection: Connection, body: Body, intended: float, window: Window, patience_s: float | None
) -> Sample:
    sent = perf_counter()
    try:
        async with asyncio.timeout(window.timeout_s if patience_s is None else patience_s):
            answer = await connection.post(body.content)
    except (TimeoutError, ConnectionLost) as error:
        gave_up = "timeout" if patience_s is None else "left"
        return Sample(
            intended=intended,
            sent=sent,
            finished=perf_counter(),
            documents=body.documents,
            outcome=gave_up if isinstance(error, TimeoutError) else "connection",
        )
    return Sample(
        intended=intended,
        sent=sent,
        finished=answer.finished,
        documents=body.documents,
        outcome=_outcome(answer, documents=body.documents),
        server_timing=answer.headers.get(b"server-timing", b""),
        retry_after_s=_seconds(answer.headers.get(b"retry-after")),
    )


def _outcome(answer: Answer, *, documents: int) -> str:
    # An answer may mention document indexes elsewhere too, for example of truncated ones.
    if answer.status == 200 and answer.body.count(_RESULT) < documents:
        return "incomplete"
    return str(answer.status)


def _seconds(header: bytes | None) -> float | None:
    return float(header) if header is not None and header.isdigit() else None
