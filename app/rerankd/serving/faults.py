"""Faults on purpose: what the service must survive can be made to happen to a running one. Off by default."""

import asyncio
import logging
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Event
from typing import ClassVar, ParamSpec, TypeVar
from weakref import WeakSet

from rerankd.concurrency.worker import Worker

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class MortalWorker(Worker):
    """A worker whose threads die when they are told to; only RERANKD_DEBUG_FAULTS and tests use it."""

    existing: ClassVar["WeakSet[MortalWorker]"] = WeakSet()

    def __init__(self, *, name: str, threads: int) -> None:
        super().__init__(name=name, threads=threads)
        self._loses_threads = False
        self.existing.add(self)

    def lose_threads(self) -> None:
        """Have every thread die at the next call and take it along, to show what becomes of that call.

        Exceptions sent to the threads would do so at any point, under any lock, and CPython can hang over that.
        """
        self._loses_threads = True

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._loses_threads:
            self._loses_threads = False
            self._end_threads()
            await asyncio.get_running_loop().create_future()  # the call is taken along
        return await super().run(call, *args, **kwargs)

    def close(self) -> None:
        self.existing.discard(self)
        super().close()

    def _end_threads(self) -> None:
        def die(future: "Future[bool]") -> None:
            if not future.cancelled():
                raise SystemExit

        may_end = Event()
        for _ in range(self.threads):
            self._executor.submit(may_end.wait).add_done_callback(die)
        may_end.set()


@contextmanager
def faults_on_signal() -> Iterator[None]:
    """SIGUSR1 kills the threads that run the forward passes of one model, chosen by chance."""
    logger.warning("DEBUG FAULTS ARE ON: SIGUSR1 kills inference threads; unset RERANKD_DEBUG_FAULTS")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, kill_threads)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


def kill_threads() -> None:
    """Let the threads of one worker die as they come to the next call, which is lost."""
    if not MortalWorker.existing:
        return
    victim = random.choice(list(MortalWorker.existing))  # noqa: S311 - which one is no secret
    logger.warning("killing the threads of %s", victim.name)
    victim.lose_threads()
