"""The rerank endpoint's own decisions: what it does while a client waits, and what it cannot write."""

import asyncio

import orjson
import pytest
from starlette.types import Message

from rerankd.api.rerank import _rendered, _while_connected
from rerankd.gateway.failures import CallerGone


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


async def test_work_is_given_up_when_the_client_goes_away() -> None:
    work = _Work()
    with pytest.raises(CallerGone):
        await _while_connected(_gone, work.go_on())
    assert work.cancelled


async def test_work_that_is_done_is_returned() -> None:
    async def work() -> int:
        return 7

    for receive in (_for_ever, _gone):
        assert await _while_connected(receive, work()) == 7


async def test_what_work_raises_is_raised() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await _while_connected(_for_ever, work())


async def test_whoever_stops_the_request_stops_its_work() -> None:
    work = _Work()
    task = asyncio.ensure_future(_while_connected(_for_ever, work.go_on()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.cancelled


def test_an_answer_that_cannot_be_written_is_our_bug() -> None:
    with pytest.raises(orjson.JSONEncodeError):
        _rendered(lambda: {"results": object()}, headers={})
