"""Signals to a serving process other than those that stop it (`app/rerankd/api/server.py`)."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

logger = logging.getLogger(__name__)

# By default each of these ends the process, and with it every running request.
_HARMLESS: Final = (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2)


def ignore_harmless_signals() -> None:
    """Ignore signals that do not ask the process to stop."""
    for number in _HARMLESS:
        signal.signal(number, signal.SIG_IGN)


@asynccontextmanager
async def reloading_on_hangup(reload: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Call `reload` on SIGHUP, one call at a time; signals during a call lead to one more."""
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
