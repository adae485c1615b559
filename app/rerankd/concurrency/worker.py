"""The boundary between asyncio and threads: code above is asynchronous, code below is plain Python."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from threading import Thread, current_thread, get_native_id
from threading import enumerate as enumerate_threads
from time import monotonic
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from rerankd.concurrency.pacing import pause

logger = logging.getLogger(__name__)

_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")

# The prefix of the names of threads that run forward passes; the model's name follows.
INFERENCE_THREAD: Final = "infer-"

# How long running calls may take when a worker is closed.
_LAST_CALLS_S: Final = 5.0
# How long threads may take to end.
_LAST_THREADS_S: Final = 1.0

_ITEMS_AT_A_TIME: Final = 250

P = ParamSpec("P")
R = TypeVar("R")


def available_cores() -> int:
    """Cores that this process may use; in a container they can be fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_quota(_QUOTA_FILE)
    return cores if quota is None else max(1, min(cores, ceil(quota)))


def read_quota(path: Path) -> float | None:
    """Cores that a control group may use (cgroup v2's cpu.max: a quota and a period); None where nothing limits it."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


async def in_chunks(items: int, *, of: int = 1, most: int = _ITEMS_AT_A_TIME) -> AsyncIterator[slice]:
    """Slices of a large request's items, each of which takes some microseconds, or of at most `most` that take longer:
    other work of the event loop runs between two of them. All but the last have a multiple `of` items.
    """
    size = max(1, most // of) * of
    for start in range(0, items, size):
        if start:
            await pause()
        yield slice(start, min(start + size, items))


async def in_steps(steps: Generator[None, None, R]) -> R:
    """Take one step after the other; between two of them the event loop has its turn."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        await pause()


async def release(items: list[Any]) -> None:
    """Empty a list in chunks: to free thousands of objects at once would hold up the event loop."""
    async for _ in in_chunks(len(items)):
        del items[-_ITEMS_AT_A_TIME:]


def exit_beside_hung_calls() -> None:
    """End the process if calls hang: the interpreter would wait for their threads forever."""
    others = [thread for thread in enumerate_threads() if thread is not current_thread() and not thread.daemon]
    ends = monotonic() + _LAST_THREADS_S
    for thread in others:
        thread.join(timeout=max(0.0, ends - monotonic()))
    hung = [thread.name for thread in others if thread.is_alive()]
    if hung:
        logger.error("the process ends while calls hang in %s", ", ".join(hung))
        logging.shutdown()
        os._exit(0)


def _lower_priority(niceness: int) -> None:
    """Of the calling thread, on Linux: elsewhere a priority is the whole process's."""
    if sys.platform == "linux":
        thread = get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)


class Worker:
    """A fixed number of threads that run one call each at a time. With a niceness, threads without one go before them.

    A call that was cancelled while it waited never starts; a running one is finished and its result discarded. A dead
    thread is replaced before the next call; the call that it ran never returns.
    """

    def __init__(self, *, name: str, threads: int, niceness: int = 0, last_calls_s: float = _LAST_CALLS_S) -> None:
        self.threads = threads
        self.name = name
        self._niceness = niceness
        self._last_calls_s = last_calls_s
        self._started: list[Thread] = []
        self._executor = self._new_executor()
        self._closed = False

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        def guarded() -> R:
            try:
                return call(*args, **kwargs)
            except (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
                # A future cannot carry the first: its reader would wait for ever. The others would end more than
                # this call, and a library in a thread has no say in that.
                raise RuntimeError(f"{type(error).__name__} was raised in a worker") from error

        if not all(thread.is_alive() for thread in self._started):
            self.give_up()
        while True:
            future = self._executor.submit(guarded)
            try:
                return await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed or not future.cancelled() or task is None or task.cancelling():
                    raise
                # It waited for a thread that was given up; a new one takes it.
            finally:
                # An error holds this frame, and the future the error: what the call was given would stay in memory.
                del future

    def give_up(self) -> None:
        """Abandon a call that hangs, and continue with new threads. Other running calls are finished, and waiting ones
        move to the new threads.
        """
        given_up, self._executor = self._executor, self._new_executor()
        given_up.shutdown(wait=False, cancel_futures=True)

    def _new_executor(self) -> ThreadPoolExecutor:
        self._started = started = []

        def start() -> None:
            started.append(current_thread())
            if self._niceness:
                _lower_priority(self._niceness)

        return ThreadPoolExecutor(max_workers=self.threads, thread_name_prefix=self.name, initializer=start)

    def close(self) -> None:
        """Let the running calls finish and end the threads. Hanging ones are abandoned."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        ends = monotonic() + self._last_calls_s
        for thread in self._started:
            thread.join(timeout=max(0.0, ends - monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
