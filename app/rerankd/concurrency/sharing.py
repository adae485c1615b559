"""Asynchronous shells around `rerankd.concurrency.turns`: slots and threads that callers share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from time import perf_counter
from typing import ParamSpec, Self, TypeVar

from rerankd.concurrency.pacing import is_held_back, pause
from rerankd.concurrency.slices import SLICE_S, Sliced, run_slice
from rerankd.concurrency.turns import Share, TurnQueue
from rerankd.concurrency.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")


class Turns:
    """A few slots that callers take in turns."""

    def __init__(self, places: int, *, per_caller: int | None = None) -> None:
        self._queue = TurnQueue(places, per_caller=per_caller)
        self._granted: dict[int, asyncio.Future[None]] = {}
        self._numbers = count()

    @property
    def idle(self) -> bool:
        """Whether no turn is taken or asked for."""
        return self._queue.idle

    async def enter(self, share: Share) -> int:
        """Wait for a turn; the number is for `leave`. Nothing is held if the caller is cancelled meanwhile."""
        return await self._wait(self._ask(share))

    def leave(self, number: int) -> None:
        """Give a place back; nothing happens if it was given back before."""
        self._queue.leave(number)
        self._grant()

    async def again(self, number: int, share: Share) -> int:
        """Change a turn that is over for the same caller's next one, which comes at once if nobody goes before it. A
        caller that is held back meanwhile has no turn.
        """
        if is_held_back():
            self.leave(number)
            await pause()
            return await self.enter(share)
        following = self._ask(share)
        self.leave(number)
        return await self._wait(following)

    @asynccontextmanager
    async def turn(self, share: Share) -> AsyncIterator[None]:
        """Hold a place."""
        number = await self.enter(share)
        try:
            yield
        finally:
            self.leave(number)

    def _ask(self, share: Share) -> int:
        number = next(self._numbers)
        self._granted[number] = asyncio.get_running_loop().create_future()
        self._queue.add(number, share)
        self._grant()
        return number

    async def _wait(self, number: int) -> int:
        granted = self._granted[number]
        try:
            if not granted.done():
                await granted
        except asyncio.CancelledError:
            self._queue.withdraw(number)
            self.leave(number)
            raise
        finally:
            del self._granted[number]
        return number

    def _grant(self) -> None:
        while (number := self._queue.next()) is not None:
            granted = self._granted[number]
            if granted.cancelled():
                self._queue.leave(number)
            else:
                granted.set_result(None)


class SharedLoop:
    """The event loop, shared by callers for longer Python work: they take turns of one time slice each, and other tasks
    run between two turns. Cancelled work stops within a slice.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._turns = Turns(1)
        self._clock = clock
        self._spent_s = 0.0

    def try_now(self, work: Sliced[R]) -> None:
        """Run the work for the rest of a slice, if nobody waits for a turn: most requests are small, and meet no other.
        All calls share one slice between two rounds of the event loop.

        Raises:
            StopIteration: the work came to its end; the value is its result.
        """
        left_s = SLICE_S - self._spent_s
        if not self._turns.idle or left_s <= 0:
            return
        if not self._spent_s:
            asyncio.get_running_loop().call_soon(self._begin_round)
        started = self._clock()
        try:
            run_slice(work, clock=self._clock, slice_s=left_s)
        finally:
            self._spent_s += self._clock() - started

    def _begin_round(self) -> None:
        self._spent_s = 0.0

    async def run(self, share: Share, work: Sliced[R]) -> R:
        """Run the work to its end; `share` names its caller, and says how much is to be read or written."""
        try:
            self.try_now(work)
        except StopIteration as end:
            result: R = end.value
            return result
        return await self._run_by_turns(share, work)

    async def _run_by_turns(self, share: Share, work: Sliced[R]) -> R:
        turn = await self._turns.enter(share)
        try:
            while True:
                await asyncio.sleep(0)
                run_slice(work, clock=self._clock)
                turn = await self._turns.again(turn, share)
        except StopIteration as end:
            result: R = end.value
            return result
        finally:
            self._turns.leave(turn)
            work.close()


class SharedWorker:
    """A worker's threads, which callers share by turns. What was cancelled while it waited never starts. A call that
    runs keeps its place to its end, even if its client goes away: a client that asks and leaves holds no more threads
    than others.
    """

    def __init__(self, worker: Worker, *, per_caller: int | None = None) -> None:
        self._worker = worker
        self._turns = Turns(worker.threads, per_caller=per_caller)
        self._running: set[asyncio.Task[object]] = set()

    @classmethod
    @contextmanager
    def open(cls, *, name: str, threads: int, per_caller: int | None = None, niceness: int = 0) -> Iterator[Self]:
        """With threads of its own, which end with the context."""
        with Worker(name=name, threads=threads, niceness=niceness) as worker:
            yield cls(worker, per_caller=per_caller)

    async def run(self, share: Share, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking call in one of the threads when its caller's turn has come."""
        if is_held_back():
            await pause()
        number = await self._turns.enter(share)
        running = asyncio.create_task(self._run(number, call, *args, **kwargs))
        self._running.add(running)
        running.add_done_callback(self._ended)
        try:
            return await asyncio.shield(running)
        finally:
            # An error holds this frame, and the task the error: what the call was given would stay in memory.
            del running

    async def run_sliced(self, share: Share, work: Sliced[R]) -> R:
        """Run the work to its end, each slice in a turn of its caller. What is cancelled stops within a slice."""
        while (end := await self.run(share, _run_slice, work)) is None:
            pass
        return end[0]

    async def _run(self, number: int, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._worker.run(call, *args, **kwargs)
        finally:
            self._turns.leave(number)

    def _ended(self, running: "asyncio.Task[object]") -> None:
        self._running.discard(running)
        if not running.cancelled():
            # Nobody may be left who wants to know.
            running.exception()


def _run_slice(work: Sliced[R]) -> tuple[R] | None:
    """The result, once the work is done."""
    try:
        run_slice(work)
    except StopIteration as end:
        return (end.value,)
    return None
