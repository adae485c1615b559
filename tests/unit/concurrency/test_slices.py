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


def _short(seen: list[str]) -> Sliced[None]:
    seen.append("step")
    yield


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
    assert {seen[index] for index in steps[1:6]} == set(names), "by turns, after the first one, which met nobody"


async def test_work_that_meets_no_other_is_done_at_once() -> None:
    seen: list[str] = []
    working = asyncio.create_task(SharedLoop().run(Share(), _short(seen)))
    await asyncio.sleep(0)
    assert working.done()
    assert seen == ["step"]


async def test_calls_of_one_round_of_the_loop_share_one_slice() -> None:
    now = 0.0
    seen: list[str] = []

    def steps() -> Sliced[None]:
        nonlocal now
        now += SLICE_S
        seen.append("step")
        yield

    loop = SharedLoop(clock=lambda: now)
    working = [asyncio.create_task(loop.run(Share(caller=f"caller {number}"), steps())) for number in range(5)]
    await asyncio.sleep(0)
    assert seen == ["step"], "the others wait for their turns"
    await asyncio.gather(*working)
    assert len(seen) == 5


async def test_while_a_caller_waits_no_work_runs_out_of_turn() -> None:
    seen: list[str] = []
    loop = SharedLoop()
    large = asyncio.create_task(loop.run(Share(caller="a"), _busy(seen, "a", 5)))
    await asyncio.sleep(0)
    loop.try_now(_short(seen))
    assert "step" not in seen
    await large


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
