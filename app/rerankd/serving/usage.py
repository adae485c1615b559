"""Counts the requests that use a loaded model: it is released after the last of them, and unloaded when none comes."""

import asyncio
from collections.abc import Callable
from time import perf_counter
from types import TracebackType


class Usage:
    """The requests that use a loaded model now. As a context manager it is one of them."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.requests = 0
        self._clock = clock
        self._unused_since = clock()
        self._unused = asyncio.Event()
        self._unused.set()

    def __enter__(self) -> None:
        self.requests += 1
        self._unused.clear()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.requests -= 1
        if not self.requests:
            self._unused_since = self._clock()
            self._unused.set()

    @property
    def idle_s(self) -> float:
        """How long no request has used it; 0 while one does."""
        return 0.0 if self.requests else self._clock() - self._unused_since

    async def ended(self) -> None:
        """Wait until no request uses it."""
        while self.requests:
            await self._unused.wait()

    async def idle_for(self, seconds: float) -> None:
        """Wait until no request has used it for so long. The caller runs before the next request does."""
        while self.idle_s < seconds:
            await self.ended()
            await asyncio.sleep(max(0.0, seconds - self.idle_s))
