"""Coroutines that end together."""

import asyncio

import pytest

from rerankd.concurrency.gathering import gather_or_cancel
from tests.garbage import kept_garbage, of_ours


async def _after(turns: int, value: int) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def test_results_are_in_the_order_of_the_coroutines() -> None:
    assert await gather_or_cancel([_after(3, 1), _after(0, 2), _after(1, 3)]) == [1, 2, 3]
    assert await gather_or_cancel([]) == []


async def test_a_failure_ends_the_others_first() -> None:
    ended = []

    async def long() -> int:
        try:
            return await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("long")

    async def failing() -> int:
        await asyncio.sleep(0)
        raise ValueError("broken")

    async def fail() -> None:
        with pytest.raises(ValueError, match="broken"):
            await gather_or_cancel([long(), failing()])

    await fail()
    assert ended == ["long"]
    with kept_garbage() as garbage:
        await fail()
    assert sorted(of_ours(garbage)) == []


async def test_a_cancelled_caller_ends_all() -> None:
    begun = asyncio.Event()
    ended = []

    async def long() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("long")

    caller = asyncio.ensure_future(gather_or_cancel([long()]))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == ["long"]
