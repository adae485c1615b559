"""How passes of an engine run: in threads, or as calls that are awaited and can be cancelled."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, Protocol, TypeVar

from rerankd.batching.work import Results
from rerankd.concurrency.worker import Worker

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

Clock = Callable[[], float]
# What asks a remote model: payloads and the latest deadline of the requests that want their results.
Ask = Callable[[Sequence[T], float], Awaitable[Results[R]]]


@dataclass(slots=True, eq=False)
class Pass:
    """A pass of the engine: since when it runs, if it does, and how long it should take. Nobody wants its results after
    `deadline`.
    """

    expected_s: float = 0.0
    deadline: float = inf
    started: float | None = None
    seconds: float = 0.0
    scope: asyncio.Timeout | None = None
    cancelled: bool = False

    def left_s(self, now: float) -> float:
        """How long it should take yet."""
        return self.expected_s if self.started is None else max(0.0, self.started + self.expected_s - now)

    def time(self, call: Callable[[Sequence[T]], R], payloads: Sequence[T], clock: Clock) -> R:
        """In the worker's thread."""
        self.started = clock()
        results = call(payloads)
        self.seconds = clock() - self.started
        return results

    def cancel(self) -> None:
        """Stop it where it waits, within `scope`: a TimeoutError comes out of that."""
        if self.scope is not None and not self.scope.expired():
            self.cancelled = True
            self.scope.reschedule(0)


class Passes(Protocol[T_contra, R_co]):
    """Runs passes, at most `limit` at a time."""

    @property
    def limit(self) -> int: ...

    @property
    def cancellable(self) -> bool:
        """Whether a pass that is cancelled ends at once."""

    async def run(self, one: Pass, payloads: Sequence[T_contra], clock: Clock) -> Results[R_co]: ...

    def give_up(self) -> None:
        """Abandon a pass that hangs."""


class ThreadPasses(Generic[T, R]):
    """Passes of an engine's `run` in the threads of a worker. One that has begun is finished."""

    cancellable = False

    def __init__(self, run: Callable[[Sequence[T]], Results[R]], worker: Worker) -> None:
        self._run = run
        self._worker = worker
        self.limit = worker.threads

    async def run(self, one: Pass, payloads: Sequence[T], clock: Clock) -> Results[R]:
        return await self._worker.run(one.time, self._run, payloads, clock)

    def give_up(self) -> None:
        self._worker.give_up()

    def release(self) -> None:
        """Drop the engine. A batcher that was cancelled is part of a reference cycle (TaskGroups of CPython 3.11), and
        would keep it until the garbage collector comes.
        """
        self._run = _run_nothing


def _run_nothing(_payloads: Sequence[Any]) -> Results[Any]:
    raise RuntimeError("the engine was released")


class CallPasses(Generic[T, R]):
    """Passes that ask a remote model, on the event loop."""

    cancellable = True

    def __init__(self, ask: Ask[T, R], *, limit: int) -> None:
        self._ask = ask
        self._free = asyncio.Semaphore(limit)
        self.limit = limit

    async def run(self, one: Pass, payloads: Sequence[T], clock: Clock) -> Results[R]:
        async with self._free:
            one.started = clock()
            results = await self._ask(payloads, one.deadline)
            one.seconds = clock() - one.started
            return results

    def give_up(self) -> None:
        """Nothing is left to do: the call was cancelled."""
