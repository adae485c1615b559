"""The rerank endpoint's own decisions: what it does while a client waits, and what it cannot write."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import orjson
import pytest
from starlette.types import Message, Receive

from rerankd.api.answers import write_json
from rerankd.api.connected import while_connected
from rerankd.concurrency.slices import Sliced, run_to_end
from rerankd.gateway.failures import CallerGone

T = TypeVar("T")


async def _for_ever() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def _gone() -> Message:
    return {"type": "http.disconnect"}


class _Work:
    def __init__(self) -> None:
        self.cancelled = False

    async def go_on(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def _at_work(receive: Receive, work: Awaitable[T]) -> T:
    with while_connected(receive):
        return await work


async def test_work_is_given_up_when_the_client_goes_away() -> None:
    work = _Work()
    with pytest.raises(CallerGone):
        await _at_work(_gone, work.go_on())
    assert work.cancelled
    await asyncio.sleep(0)  # the task itself is not cancelled any more


async def test_work_that_is_done_is_returned() -> None:
    async def work() -> int:
        return 7

    for receive in (_for_ever, _gone):
        assert await _at_work(receive, work()) == 7
        await asyncio.sleep(0)


async def test_what_work_raises_is_raised() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await _at_work(_for_ever, work())


async def test_what_work_raises_when_it_is_given_up_is_raised() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("x")

    with pytest.raises(KeyError):
        await _at_work(_gone, work())
    await asyncio.sleep(0)


@pytest.mark.parametrize("receive", [_for_ever, _gone])
async def test_a_request_that_is_stopped_ends_with_its_work(receive: Receive) -> None:
    work = _Work()
    task = asyncio.ensure_future(_at_work(receive, work.go_on()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.cancelled


async def test_a_timeout_inside_is_told_as_one() -> None:
    async def work() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await _at_work(_for_ever, work())


@pytest.mark.parametrize("results", [object(), iter([object()])])
def test_an_answer_that_cannot_be_written_is_our_bug(results: object) -> None:
    with pytest.raises(orjson.JSONEncodeError):
        run_to_end(write_json({"results": results}))


def _noted(work: Sliced[T], steps: list[None]) -> Sliced[T]:
    """The same work; each step of it is added to `steps`."""
    try:
        while True:
            steps.append(next(work))
            yield
    except StopIteration as end:
        result: T = end.value
        return result


@pytest.mark.parametrize("count", [0, 1, 250, 251, 600])
def test_a_long_list_is_written_in_steps(count: int) -> None:
    rows = [{"index": index} for index in range(count)]
    for content, expected in (({"id": "x", "results": iter(rows)}, {"id": "x", "results": rows}), (iter(rows), rows)):
        steps: list[None] = []
        assert orjson.loads(run_to_end(_noted(write_json(content), steps))) == expected
        assert len(steps) == -(-count // 250)
