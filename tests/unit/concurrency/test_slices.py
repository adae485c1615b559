"""Long work on the event loop is done in slices, and between two of them everything else has its turn."""

import asyncio
from itertools import pairwise
from time import perf_counter

import pytest

from rerankd.concurrency.sharing import SharedLoop
from rerankd.concurrency.slices import SLICE_S, Sliced, run_slice, run_to_end
from rerankd.concurrency.turns import Share


def _busy(seen: list[str], name: str, steps: int) -> Sliced[str]:
    for _ in range(steps):
        until = perf_counter() + 1.5 * SLICE_S
        while perf_counter() < until:
            pass
        seen.append(name)
        yield
    return name


async def test_between_two_slices_the_loop_does_what_else_is_ready() -> None:
    seen: list[str] = []

    async def tick() -> None:
        while True:
            seen.append("tick")
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    loop = SharedLoop()
    names = [f"caller {number}" for number in range(5)]
    work = [loop.run(Share(caller=name), _busy(seen, name, 3)) for name in names]
    assert await asyncio.gather(*work) == names
    ticking.cancel()
    steps = [index for index, what in enumerate(seen) if what != "tick"]
    assert len(steps) == 15
    assert all(later - earlier > 1 for earlier, later in pairwise(steps))
    assert {seen[index] for index in steps[:5]} == set(names), "by turns"


async def test_what_is_cancelled_stops_within_a_slice_and_makes_room() -> None:
    seen: list[str] = []
    loop = SharedLoop()
    gone = asyncio.create_task(loop.run(Share(caller="a"), _busy(seen, "a", 1000)))
    for _ in range(5):
        await asyncio.sleep(0)
    gone.cancel()
    assert await loop.run(Share(caller="b"), _busy(seen, "b", 1)) == "b"
    assert 1 <= seen.count("a") <= 6


async def test_an_error_of_a_step_is_the_callers_and_makes_room() -> None:
    def fails() -> Sliced[None]:
        yield
        raise ValueError("no")

    loop = SharedLoop()
    with pytest.raises(ValueError, match="no"):
        await loop.run(Share(), fails())
    assert await loop.run(Share(), _busy([], "b", 1)) == "b"


def test_a_slice_is_over_when_its_time_is() -> None:
    now = iter(range(100))
    seen: list[str] = []

    def steps() -> Sliced[int]:
        for _ in range(6):
            seen.append("step")
            yield
        return 6

    work = steps()
    run_slice(work, clock=lambda: float(next(now)), slice_s=3)
    assert len(seen) == 3
    assert run_to_end(work) == 6
