"""Two ends of a socket pair call each other; an end that goes away leaves nobody waiting."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from socket import AF_UNIX, SOCK_STREAM, socketpair
from typing import Any

import pytest

from rerankd import errors
from rerankd.concurrency.channel import Channel, described, revived
from rerankd.errors import ConfigError, Overloaded, RerankError, Unavailable


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[Channel, Channel, list[str]]]:
    """Both ends, and which of them were lost."""
    lost: list[str] = []
    ends = [Channel(name, lost=lambda name=name: lost.append(name)) for name in ("left", "right")]  # type: ignore[misc]
    for end, half in zip(ends, socketpair(AF_UNIX, SOCK_STREAM), strict=True):
        half.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda end=end: end, sock=half)  # type: ignore[misc]
    try:
        yield ends[0], ends[1], lost
    finally:
        for end in ends:
            end.close()
        while len(lost) < len(ends):  # noqa: ASYNC110 - the loop tells in its next turns
            await asyncio.sleep(0)


async def test_calls_are_answered_whatever_their_order_and_size() -> None:
    async with channels() as (asking, answering, _):
        later: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def slow(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
            await later
            return head, body * 2

        answering.calls |= {"slow": slow, "quick": lambda head, body: (head, body)}
        first = asyncio.create_task(asking.call("slow", {"number": 1}, b"ab"))
        for size in (0, 1, 1 << 18, 3_000_001, 5):
            assert await asking.call("quick", {"size": size}, b"x" * size) == ({"size": size}, b"x" * size)
        later.set_result(None)
        assert await first == ({"number": 1}, b"abab")


async def test_both_ends_may_call_at_the_same_time() -> None:
    async with channels() as (left, right, _):
        left.calls["who"] = lambda _head, _body: ({"name": "left"}, b"")
        right.calls["who"] = lambda _head, _body: ({"name": "right"}, b"")
        answers = await asyncio.gather(*(end.call("who", {}) for end in (left, right) for _ in range(50)))
        assert [answer["name"] for answer, _ in answers] == ["right"] * 50 + ["left"] * 50


async def test_what_is_told_arrives_before_the_call_behind_it() -> None:
    async with channels() as (asking, answering, _):
        heard: list[int] = []
        answering.notices["count"] = lambda head: heard.append(head["number"])
        answering.calls["heard"] = lambda _head, _body: ({"heard": heard}, b"")
        for number in range(3):
            asking.tell("count", {"number": number})
        assert await asking.call("heard", {}) == ({"heard": [0, 1, 2]}, b"")


async def test_an_error_is_the_same_on_the_other_side() -> None:
    async with channels() as (asking, answering, _):

        def refuse(_head: dict[str, Any], _body: bytes) -> tuple[dict[str, Any], bytes]:
            raise Overloaded("too much", retry_after_s=7.5)

        answering.calls["refuse"] = refuse
        with pytest.raises(Overloaded, match="too much") as refused:
            await asking.call("refuse", {})
        assert refused.value.retry_after_s == 7.5


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, RerankError | ConfigError) and kind is not RerankError
    ],
)
def test_every_error_can_be_told(kind: type[Exception]) -> None:
    told = revived(described(kind("why")))
    assert type(told) is kind
    assert str(told) == "why"


def test_a_failure_of_our_own_is_logged_where_it_happened(caplog: pytest.LogCaptureFixture) -> None:
    told = revived(described(ValueError("a mistake")))
    assert isinstance(told, RerankError)
    assert "a call of another process failed" in caplog.text


async def test_who_is_cancelled_cancels_the_call_and_still_hears_what_it_cost() -> None:
    async with channels() as (asking, answering, _):
        began, late = asyncio.Event(), asyncio.Event()
        costs: list[int] = []

        async def work(_head: dict[str, Any], _body: bytes) -> tuple[dict[str, Any], bytes]:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return {"cost": 12}, b""
            raise AssertionError

        def hear(head: dict[str, Any]) -> None:
            costs.append(head["cost"])
            late.set()

        answering.calls["work"] = work
        call = asyncio.create_task(asking.call("work", {}, late=hear))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await late.wait()
        assert costs == [12]


async def test_nobody_waits_for_an_end_that_is_gone() -> None:
    async with channels() as (asking, answering, lost):
        cancelled = asyncio.Event()

        async def work(_head: dict[str, Any], _body: bytes) -> tuple[dict[str, Any], bytes]:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError

        answering.calls["work"] = work
        call = asyncio.create_task(asking.call("work", {}))
        await asyncio.sleep(0.01)
        asking.close()
        with pytest.raises(Unavailable, match="left is gone"):
            await call
        async with asyncio.timeout(10):
            await cancelled.wait()
        assert lost
        with pytest.raises(Unavailable):
            await asking.call("work", {})
        asking.tell("anything", {})


async def test_a_call_that_is_cancelled_before_it_begins_is_forgotten_at_both_ends() -> None:
    """Both messages can come in one read when the other end is busy."""
    async with channels() as (asking, answering, _):
        late: list[dict[str, Any]] = []
        began: list[bool] = []

        async def work(_head: dict[str, Any], _body: bytes) -> tuple[dict[str, Any], bytes]:
            began.append(True)
            return {}, b""

        answering.calls |= {"work": work, "quick": lambda head, body: (head, body)}
        call = asyncio.create_task(asking.call("work", {}, late=late.append))
        asyncio.get_running_loop().call_soon(call.cancel)
        with pytest.raises(asyncio.CancelledError):
            await call
        for _ in range(3):
            await asking.call("quick", {})
        assert not began
        assert [told["error"] for told in late] == ["Unavailable"]


async def test_an_answer_that_comes_as_the_caller_is_cancelled_is_heard() -> None:
    async with channels() as (asking, answering, _):
        late: list[dict[str, Any]] = []
        call = asyncio.create_task(asking.call("cost", {}, late=late.append))

        def cancel(_head: dict[str, Any]) -> None:
            call.cancel()

        # It arrives in the same read as the answer, behind it.
        asking.notices["cancel"] = cancel

        def cost(_head: dict[str, Any], _body: bytes) -> tuple[dict[str, Any], bytes]:
            asyncio.get_running_loop().call_soon(answering.tell, "cancel", {})
            return {"cost": 12}, b""

        answering.calls["cost"] = cost
        with pytest.raises(asyncio.CancelledError):
            await call
        assert late == [{"cost": 12}]


async def test_calls_are_numbered_beyond_what_a_busy_service_can_make() -> None:
    async with channels() as (asking, answering, _):
        asking._numbers = count(2**32)  # some days of calls
        answering.calls["quick"] = lambda head, body: (head, body)
        assert await asking.call("quick", {"a": 1}) == ({"a": 1}, b"")


def test_an_error_of_an_extension_is_told_as_the_kind_it_is_of() -> None:
    class Crowded(Overloaded):
        pass

    told = revived(described(Crowded("too much", retry_after_s=3.0)))
    assert type(told) is Overloaded
    assert told.retry_after_s == 3.0
