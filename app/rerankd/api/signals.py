"""What signals do to a serving process beside stopping it (`app/rerankd/api/server.py`)."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

logger = logging.getLogger(__name__)

# The default of each of these is to end the process, and with it every request that is being answered.
_HARMLESS: Final = (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2)


def ignore_harmless_signals() -> None:
    """Let none of the signals that mean no stop end the process."""
    for number in _HARMLESS:
        signal.signal(number, signal.SIG_IGN)


@asynccontextmanager
async def reloading_on_hangup(reload: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call `reload` on SIGHUP, one call at a time; a signal that comes meanwhile leads to one more."""
    asked = asyncio.Event()

    async def reload_when_asked() -> None:
        while True:
            await asked.wait()
            asked.clear()
            try:
                await reload()
            except Exception:
                logger.exception("reloading failed; everything stays as it was")

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    reloading = asyncio.create_task(reload_when_asked())
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
