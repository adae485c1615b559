"""Coroutines that run side by side and end together."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from rerankd.concurrency.pacing import paced_alike

R = TypeVar("R")


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """The results in order. The first failure cancels the others, and is raised once they have ended."""
    running = [asyncio.create_task(paced_alike(one)) for one in coroutines]
    try:
        return await asyncio.gather(*running)
    finally:
        await _end(running)


async def _end(running: list[asyncio.Task[R]]) -> None:
    """Cancel tasks, wait for their end and forget them. The error of one holds the frame that awaited it: with the task
    in that frame the request would stay in memory until the garbage collector comes.
    """
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    running.clear()
