"""Counts the event loop's time by caller, and holds heavy callers back; see `rerankd.concurrency.loop_share`."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from time import perf_counter, thread_time
from typing import Any, Final, TypeVar

from rerankd.concurrency.loop_share import LoopShare
from rerankd.concurrency.slices import SLICE_S

R = TypeVar("R")

# While light callers have requests here, a heavy one may take this part of all cores' time on the event loop.
_PART_OF_CORES: Final = 1 / 16
# What the loop takes for a request outside of its steps: connection, head, and the end of the answer.
_REQUEST_S: Final = 5e-4
# A request that is held back looks this often whether the others have gone.
_LOOK_S: Final = 0.01


class Pacing:
    """The event loop's time, shared by callers."""

    def __init__(
        self,
        *,
        cores: int,
        clock: Callable[[], float] = perf_counter,
        cpu_clock: Callable[[], float] = thread_time,
    ) -> None:
        """`cpu_clock` tells the CPU time of the loop's thread."""
        self._share = LoopShare(min(1.0, cores * _PART_OF_CORES))
        self._clock = clock
        self._cpu_clock = cpu_clock

    @property
    def is_shared(self) -> bool:
        """Whether several callers have requests here."""
        return self._share.is_shared

    def enter(self, caller: str) -> None:
        """A request of the caller has begun."""
        now = self._clock()
        self._share.enter(caller, now=now)
        if self._share.is_shared:
            self._share.spend(caller, _REQUEST_S, now=now)

    def arrive(self, caller: str) -> None:
        """All of a request that has begun is here; its answer is awaited."""
        self._share.arrive(caller)

    def leave(self, caller: str, *, arrived: bool) -> None:
        """A request of the caller has ended."""
        self._share.leave(caller, arrived=arrived)

    def paced(self, caller: str, work: Coroutine[Any, Any, R]) -> Coroutine[Any, Any, R]:
        """A part of a request that has begun. It is held back at each `pause` inside, if it must be."""
        return _Paced(work, _Pace(caller, self._share, self._clock, self._cpu_clock))


class _Pace:
    """The loop time of one task: what it takes between two of its waits is the caller's."""

    def __init__(
        self, caller: str, share: LoopShare, clock: Callable[[], float], cpu_clock: Callable[[], float]
    ) -> None:
        self._caller = caller
        self.share = share
        self._clock = clock
        self._cpu_clock = cpu_clock
        self.running = False
        self._counted_until = 0.0
        self._paid_s = 0.0

    def another(self) -> "_Pace":
        """For another task of the same request."""
        return _Pace(self._caller, self.share, self._clock, self._cpu_clock)

    def begin_step(self) -> None:
        """The task runs from now on."""
        self.running = True
        self._counted_until = self._cpu_clock()

    def end_step(self) -> None:
        """The task waits from now on."""
        self.count()
        self.running = False

    def count(self, *, elsewhere_s: float = 0.0) -> None:
        """Count what the task took since it was last counted, and what was done for it elsewhere."""
        now = self._cpu_clock()
        seconds = now - self._counted_until + elsewhere_s
        self._counted_until = now
        covered_s = min(seconds, self._paid_s)
        self._paid_s -= covered_s
        self.share.spend(self._caller, seconds - covered_s, now=self._clock())

    def wait_s(self) -> float:
        return self.share.wait_s(self._caller, now=self._clock())

    def pay(self, seconds: float) -> None:
        """Count time before it is taken, so that one of many requests that wait goes on."""
        self.share.spend(self._caller, seconds - self._paid_s, now=self._clock())
        self._paid_s = seconds


_current: ContextVar[_Pace | None] = ContextVar("pace", default=None)


class _Paced(Coroutine[Any, Any, R]):
    """A coroutine whose steps are counted while several callers are here. One step is what a task does between two of
    its waits.
    """

    def __init__(self, work: Coroutine[Any, Any, R], pace: _Pace) -> None:
        self._work = work
        self._pace = pace

    def send(self, value: Any) -> Any:  # noqa: ANN401 - as coroutines do
        return self._step(self._work.send, value)

    def throw(self, *error: Any) -> Any:  # noqa: ANN401 - as coroutines do
        return self._step(self._work.throw, *error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, R]:
        return self  # type: ignore[return-value] # it has all that `await` calls

    def __next__(self) -> Any:  # noqa: ANN401 - what an event loop waits for
        return self.send(None)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401 - as coroutines do
        before, pace = _current.get(), self._pace
        _current.set(pace)
        counted = pace.share.is_shared
        if counted:
            pace.begin_step()
        try:
            return step(*args)
        finally:
            if counted:
                pace.end_step()
            _current.set(before)


def paced_alike(work: Coroutine[Any, Any, R]) -> Coroutine[Any, Any, R]:
    """A coroutine for another task, whose time counts as that of the task that calls this."""
    pace = _current.get()
    return work if pace is None else _Paced(work, pace.another())


def is_held_back(*, elsewhere_s: float = 0.0) -> bool:
    """Whether the next `pause` would take its time: give back before it what others could use. `elsewhere_s` is loop
    time that was taken for this task, and not in it.
    """
    pace = _current.get()
    # Tasks that clean up behind a request begin with its context.
    if pace is None or not pace.running:
        return False
    pace.count(elsewhere_s=elsewhere_s)
    return pace.wait_s() > 0


async def pause() -> None:
    """Let other work of the event loop run; that of other callers first, if this task's caller had too much."""
    await asyncio.sleep(0)
    if not is_held_back():
        return
    pace = _current.get()
    assert pace is not None  # noqa: S101 - it is held back
    while (wait_s := pace.wait_s()) > 0:  # noqa: ASYNC110 - time passes, and nobody tells
        await asyncio.sleep(min(wait_s, _LOOK_S))
    pace.pay(SLICE_S)
