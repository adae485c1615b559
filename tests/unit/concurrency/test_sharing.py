"""Places and threads that callers share, with asyncio and real threads."""

import asyncio
import threading
from time import perf_counter

import pytest

from rerankd.concurrency.sharing import SharedWorker, Turns
from rerankd.concurrency.slices import SLICE_S, Sliced
from rerankd.concurrency.turns import Share
from tests.garbage import kept_garbage, of_ours

_A, _B = Share(caller="a"), Share(caller="b")


async def _turn_over() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_place_is_taken_at_once_and_a_taken_one_waited_for() -> None:
    turns, order = Turns(1), []

    async def visit(name: str) -> None:
        async with turns.turn(_A):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(visit("first"), visit("second"))
    assert order == ["first in", "first out", "second in", "second out"]


async def test_a_turn_is_followed_by_the_same_callers_unless_another_is_next() -> None:
    turns = Turns(1)
    mine = await turns.enter(Share(caller="a", cost=10))
    mine = await turns.again(mine, Share(caller="a", cost=10))
    others = asyncio.ensure_future(turns.enter(_B))
    await _turn_over()
    assert not others.done()
    again = asyncio.ensure_future(turns.again(mine, Share(caller="a", cost=10)))
    await _turn_over()
    assert others.done()
    assert not again.done()
    turns.leave(others.result())
    turns.leave(await again)


async def test_a_caller_that_is_cancelled_while_it_waits_holds_nothing() -> None:
    turns = Turns(1)
    held = await turns.enter(_A)
    waiting = [asyncio.ensure_future(turns.enter(_A)) for _ in range(2)]
    await _turn_over()
    waiting[0].cancel()
    await _turn_over()
    turns.leave(held)
    assert await waiting[1]


async def test_a_caller_that_is_cancelled_as_its_turn_comes_gives_it_back() -> None:
    turns = Turns(1)
    held = await turns.enter(_A)
    unlucky, next_one = (asyncio.ensure_future(turns.enter(_A)) for _ in range(2))
    await _turn_over()
    turns.leave(held)
    unlucky.cancel()
    await asyncio.wait_for(next_one, timeout=5)
    assert unlucky.cancelled()


async def test_a_turn_of_one_that_has_just_gone_away_is_the_next_ones() -> None:
    turns = Turns(1)
    held = await turns.enter(_A)
    unlucky, next_one = (asyncio.ensure_future(turns.enter(_A)) for _ in range(2))
    await _turn_over()
    unlucky.cancel()
    turns.leave(held)
    await asyncio.wait_for(next_one, timeout=5)
    assert unlucky.cancelled()


async def test_a_call_that_was_cancelled_while_it_waited_never_starts() -> None:
    gate = threading.Event()
    started: list[int] = []
    with SharedWorker.open(name="test", threads=1) as shared:
        running = asyncio.ensure_future(shared.run(_A, gate.wait))
        waiting = asyncio.ensure_future(shared.run(_A, started.append, 1))
        await _turn_over()
        waiting.cancel()
        await _turn_over()
        gate.set()
        assert await running
        await shared.run(_A, lambda: None)
    assert started == []


async def test_a_caller_that_cancels_repeatedly_holds_only_its_own_threads() -> None:
    """A call that runs cannot be stopped: its thread is taken until its end, and its caller answers for it."""
    gate = threading.Event()
    with SharedWorker.open(name="test", threads=2, per_caller=1) as shared:
        for _ in range(5):
            asking = asyncio.ensure_future(shared.run(_A, gate.wait))
            await asyncio.sleep(0.01)
            asking.cancel()
            await _turn_over()
        assert await asyncio.wait_for(shared.run(_B, lambda: "answered"), timeout=5) == "answered"
        last = asyncio.ensure_future(shared.run(_A, lambda: "later"))
        await asyncio.sleep(0.01)
        assert not last.done()
        gate.set()
        assert await asyncio.wait_for(last, timeout=5) == "later"


@pytest.mark.parametrize("error", [ValueError("told to"), KeyError(1)], ids=repr)
async def test_what_a_call_raises_reaches_the_caller_and_the_place_is_free_again(error: Exception) -> None:
    def fail() -> None:
        raise error

    with SharedWorker.open(name="test", threads=1) as shared:
        for _ in range(3):
            with pytest.raises(type(error)):
                await asyncio.wait_for(shared.run(_A, fail), timeout=5)


async def test_a_failure_that_nobody_waits_for_any_more_is_nobodys() -> None:
    gate = threading.Event()

    def fail() -> None:
        gate.wait(timeout=5)
        raise ValueError("told to")

    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    with SharedWorker.open(name="test", threads=1) as shared:
        asking = asyncio.ensure_future(shared.run(_A, fail))
        await asyncio.sleep(0.01)
        asking.cancel()
        await _turn_over()
        gate.set()
        await shared.run(_A, lambda: None)
    assert unhandled == []


def _work(done: list[str], name: str, slices: int) -> Sliced[str]:
    for _ in range(slices):
        until = perf_counter() + 1.1 * SLICE_S
        while perf_counter() < until:
            pass
        done.append(name)
        yield
    return name


async def test_long_work_in_a_thread_is_done_by_turns() -> None:
    done: list[str] = []
    with SharedWorker.open(name="test", threads=1) as shared:
        large = asyncio.create_task(shared.run_sliced(_A, _work(done, "large", 20)))
        await asyncio.sleep(0)
        await shared.run(_B, int)  # comes after its first slice
        assert await shared.run_sliced(_B, _work(done, "small", 2)) == "small"
        assert done.count("large") < 10
        assert await large == "large"
    assert done.count("large") == 20


async def test_long_work_in_a_thread_stops_within_a_slice() -> None:
    done: list[str] = []
    with SharedWorker.open(name="test", threads=1) as shared:
        gone = asyncio.create_task(shared.run_sliced(_A, _work(done, "gone", 1000)))
        await asyncio.sleep(0)
        await shared.run(_B, int)  # comes after its first slice
        gone.cancel()
        before = len(done)
        assert await shared.run_sliced(_B, _work([], "other", 2)) == "other"
    assert len(done) <= before + 2


async def test_a_call_that_fails_leaves_no_cycle() -> None:
    async def fail(worker: SharedWorker) -> None:
        with pytest.raises(ValueError, match="could not convert"):
            await worker.run(_A, float, "no number")
        with pytest.raises(ValueError, match="in a slice"):
            await worker.run_sliced(_A, _failing())
        await _turn_over()

    with SharedWorker.open(name="shared", threads=1) as worker:
        await fail(worker)
        with kept_garbage() as garbage:
            await fail(worker)
        assert sorted(of_ours(garbage)) == []


def _failing() -> Sliced[None]:
    yield
    raise ValueError("in a slice")
