"""An event loop whose time passes only when nothing is left to do, and threads that take time on it without running:
what is slow on a machine is exact here, and takes no time.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from rerankd.concurrency.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")


class _NothingToWaitFor:
    """Stands where an event loop asks the operating system for news: there is none, and time passes until it is due."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("all tasks wait, and nothing can wake them")
        self._loop.idle(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.computed_s = 0.0
        self._selector = _NothingToWaitFor(self)

    def time(self) -> float:
        return self._now

    def compute(self, seconds: float) -> None:
        """Take CPU time in which the loop does nothing else."""
        self._now += seconds
        self.computed_s += seconds

    def idle(self, seconds: float) -> None:
        """Let time pass in which there is nothing to do."""
        self._now += seconds

    def run_in_executor(  # type: ignore[override] # it takes any call, as asyncio says with a variadic type
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        future = self.create_future()
        future.set_result(func(*args))
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class Clock:
    """The loop's time. A call in a thread may `spend` some: for that call it is later then."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self._spent = 0.0

    def __call__(self) -> float:
        return self.loop.time() + self._spent

    def spend(self, seconds: float) -> None:
        self._spent += seconds

    def timed(self, call: Callable[[], R]) -> tuple[R, float]:
        """What a call gives, and how long it takes."""
        result = call()
        seconds, self._spent = self._spent, 0.0
        return result, seconds


class VirtualWorker(Worker):
    """Threads that are busy for as long as their calls spend, and `seconds_per_call` more. A call that runs is not over
    because its result is no longer needed.
    """

    def __init__(self, clock: Clock, *, threads: int, seconds_per_call: float = 0.0) -> None:
        super().__init__(name="virtual", threads=threads)
        self._clock = clock
        self._seconds_per_call = seconds_per_call
        self._free = asyncio.Semaphore(threads)
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        await self._free.acquire()
        running = asyncio.create_task(self._run(lambda: call(*args, **kwargs)))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.shield(running)

    async def _run(self, call: Callable[[], R]) -> R:
        try:
            result, seconds = self._clock.timed(call)
            await asyncio.sleep(seconds + self._seconds_per_call)
            return result
        finally:
            self._free.release()
