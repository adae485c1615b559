"""Coroutines whose time on the event loop is counted, and that wait while they had too much."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from rerankd.concurrency.gathering import gather_or_cancel
from rerankd.concurrency.pacing import Pacing, is_held_back, paced_alike, pause
from rerankd.concurrency.sharing import Turns
from rerankd.concurrency.turns import Share
from tests.garbage import kept_garbage, of_ours


@dataclass(slots=True)
class _Cpu:
    """CPU time of the loop's thread, as far as the tests take it; wall time does not pass until they say so."""

    taken_s: float = 0.0
    now: float = 0.0
    pacing: Pacing = field(init=False)

    def __post_init__(self) -> None:
        self.pacing = Pacing(cores=2, clock=lambda: self.now, cpu_clock=lambda: self.taken_s)
        for caller in ("heavy", "light"):
            self.pacing.enter(caller)
            self.pacing.arrive(caller)

    def take(self, seconds: float) -> None:
        self.taken_s += seconds


async def _until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110 - the loop has nothing else to do
        await asyncio.sleep(0)


async def test_a_heavy_caller_waits_at_its_next_pause_until_its_share_is_there() -> None:
    cpu, steps = _Cpu(), []

    async def work() -> str:
        steps.append("first")
        cpu.take(0.1)
        await asyncio.sleep(0)
        steps.append("second")
        await pause()
        steps.append("third")
        return "done"

    working = asyncio.create_task(cpu.pacing.paced("heavy", work()))
    await asyncio.sleep(0.02)
    assert steps == ["first", "second"]
    cpu.now += 1.0
    assert await working == "done"


async def test_a_caller_goes_on_when_the_others_have_left() -> None:
    cpu = _Cpu()

    async def work() -> None:
        cpu.take(0.1)
        await pause()

    working = asyncio.create_task(cpu.pacing.paced("heavy", work()))
    await asyncio.sleep(0.001)
    cpu.pacing.leave("light", arrived=True)
    await asyncio.wait_for(working, timeout=5)


async def test_of_many_requests_of_a_caller_one_goes_on_at_a_time() -> None:
    cpu, passed = _Cpu(), []

    async def work(number: int) -> None:
        cpu.take(0.01)
        await pause()
        passed.append(number)
        await asyncio.Event().wait()

    working = [asyncio.create_task(cpu.pacing.paced("heavy", work(number))) for number in range(10)]
    await asyncio.sleep(0.005)
    assert not passed
    cpu.now += 0.08 / 0.125
    await asyncio.sleep(0.05)
    assert len(passed) == 1
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)


async def test_a_caller_that_is_held_back_has_no_turn() -> None:
    cpu, turns = _Cpu(), Turns(1)

    async def work() -> None:
        turn = await turns.enter(Share(caller="heavy"))
        cpu.take(0.1)
        turns.leave(await turns.again(turn, Share(caller="heavy")))

    working = asyncio.create_task(cpu.pacing.paced("heavy", work()))
    await asyncio.sleep(0)
    assert not working.done()
    assert turns.idle
    cpu.now += 1.0
    await working


async def test_tasks_of_a_request_count_for_its_caller_and_what_cleans_up_behind_it_for_nobody() -> None:
    cpu, behind = _Cpu(), []

    async def part() -> None:
        cpu.take(0.02)

    async def clean_up() -> None:
        cpu.take(10.0)
        behind.append(is_held_back())
        await pause()

    async def work() -> bool:
        cleaning = asyncio.create_task(clean_up())
        await gather_or_cancel([part(), part()])
        await cleaning
        return is_held_back()

    assert await cpu.pacing.paced("heavy", work())
    assert behind == [False]
    cpu.now += 0.02 / 0.125 + 0.001
    assert not await cpu.pacing.paced("heavy", _asked()), "what was taken behind it was not counted"


async def _asked() -> bool:
    return is_held_back()


async def test_what_is_raised_and_cancelled_passes_through() -> None:
    cpu, seen = _Cpu(), []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def run() -> None:
        with pytest.raises(ValueError, match="broken"):
            await cpu.pacing.paced("light", fail())

    await run()
    with kept_garbage() as garbage:
        await run()
    assert sorted(of_ours(garbage)) == []
    waiting = asyncio.create_task(cpu.pacing.paced("light", wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert seen == ["cancelled"]


async def test_without_a_caller_a_pause_is_one_turn_of_the_loop() -> None:
    await pause()
    assert not is_held_back()
    work = _asked()
    assert paced_alike(work) is work
    assert not await work
