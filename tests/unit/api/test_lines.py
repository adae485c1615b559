"""Answers in lines: what is sent before the work ends, how it ends, and what ends it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import orjson
import pytest
from starlette.responses import Response
from starlette.types import Message, Scope

from rerankd.api.access import access_of
from rerankd.api.answers import FOUR_STRINGS, error_answer, json_answer
from rerankd.api.lines import NDJSON, answer_in_lines, wants_lines
from rerankd.domain import Settled
from rerankd.errors import DeadlineExceeded
from rerankd.gateway.failures import CANCELLED

Work = Callable[[Settled], Awaitable[Response]]


class Client:
    """Reads a response; `reads` is cleared to stop reading."""

    def __init__(self) -> None:
        self.scope: Scope = {"type": "http"}
        self.parts: list[Message] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.has_part = asyncio.Event()

    async def receive(self) -> Message:
        raise AssertionError("the work itself looks whether the client is there")

    async def send(self, message: Message) -> None:
        self.parts.append(message)
        self.has_part.set()
        await self.reads.wait()

    @property
    def lines(self) -> list[object]:
        return [orjson.loads(part["body"]) for part in self.parts[1:]]


class Steps:
    """Work that settles a place at each step that it is told to take, and answers when told to."""

    def __init__(self, answer: Response) -> None:
        self.next = asyncio.Event()
        self.cancelled = False
        self._answer = answer

    async def work(self, settled: Settled) -> Response:
        try:
            for place in (2, 1):
                settled(place, [place + 10])
                await self.next.wait()
                self.next.clear()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self._answer


def places(*ranks: int) -> dict[str, object]:
    return {"settled": [{"index": rank + 9, "rank": rank} for rank in ranks]}


async def until(client: Client, parts: int) -> None:
    while len(client.parts) < parts:
        client.has_part.clear()
        await client.has_part.wait()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/x-ndjson", True),
        ("Application/X-NDJSON; q=1, */*;q=0.1", True),
        ("application/json, application/x-ndjson", False),
        ("application/x-ndjson;q=0.1, application/json", False),
        ("*/*", False),
        ("application/*", False),
        ("", False),
    ],
)
def test_lines_are_for_those_who_accept_nothing_else(accept: str, expected: bool) -> None:
    assert wants_lines({"accept": accept}) is expected


async def test_places_are_sent_while_the_work_goes_on_and_the_answer_is_the_last_line() -> None:
    steps, client = Steps(json_answer({"id": "x"})), Client()
    response = await answer_in_lines(steps.work, form=FOUR_STRINGS)
    sending = asyncio.create_task(response(client.scope, client.receive, client.send))
    await until(client, 2)
    assert client.parts[0]["status"] == 200
    assert dict(client.parts[0]["headers"])[b"content-type"] == NDJSON.encode()
    assert b"content-length" not in dict(client.parts[0]["headers"])
    assert client.lines == [places(3)]
    steps.next.set()
    await until(client, 3)
    assert client.lines == [places(3), places(2)]
    steps.next.set()
    await sending
    assert client.lines == [places(3), places(2), {"id": "x"}]
    assert all(part["body"].endswith(b"\n") and part["body"].count(b"\n") == 1 for part in client.parts[1:])
    assert [part.get("more_body", False) for part in client.parts[1:]] == [True, True, False]


async def test_what_settles_while_a_client_does_not_read_is_one_line() -> None:
    stop = asyncio.Event()

    async def work(settled: Settled) -> Response:
        settled(99, [99])
        await client.has_part.wait()
        await asyncio.sleep(0)
        for place in range(98, -1, -1):
            settled(place, [place])
        stop.set()
        await asyncio.Event().wait()
        raise AssertionError

    client = Client()
    response = await answer_in_lines(work, form=FOUR_STRINGS)
    client.reads.clear()
    sending = asyncio.create_task(response(client.scope, client.receive, client.send))
    await stop.wait()
    assert len(client.parts) == 1
    client.reads.set()
    await until(client, 2)
    assert len(orjson.loads(client.parts[1]["body"])["settled"]) == 100
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_an_answer_before_which_nothing_settles_is_one_line_with_its_headers() -> None:
    async def work(_settled: Settled) -> Response:
        response = json_answer({"documents": []}, headers={"Server-Timing": "total;dur=1"})
        response.body = b'{\r\n "text": "a\\nb"\n}'
        return response

    response = await answer_in_lines(work, form=FOUR_STRINGS)
    assert response.body == b'{   "text": "a\\nb" }\n'
    assert response.headers["content-length"] == str(len(response.body))
    assert response.headers["content-type"] == NDJSON
    assert response.headers["server-timing"] == "total;dur=1"


async def test_what_fails_before_the_first_line_has_its_own_status() -> None:
    async def work(_settled: Settled) -> Response:
        return error_answer(DeadlineExceeded("late"))

    response = await answer_in_lines(work, form=FOUR_STRINGS)
    assert (response.status_code, response.media_type) == (504, "application/json")

    async def bug(_settled: Settled) -> Response:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await answer_in_lines(bug, form=FOUR_STRINGS)


async def test_what_fails_later_is_the_last_line_and_the_status_in_the_log() -> None:
    steps, client = Steps(error_answer(DeadlineExceeded("late"))), Client()
    response = await answer_in_lines(steps.work, form=FOUR_STRINGS)
    sending = asyncio.create_task(response(client.scope, client.receive, client.send))
    for part in (2, 3):
        await until(client, part)
        steps.next.set()
    await sending
    assert client.lines[-1] == {
        "message": "late",
        "detail": "late",
        "error": "late",
        "error_type": "deadline_exceeded",
    }
    assert access_of(client.scope).status == 504


async def test_a_bug_after_the_first_line_is_an_error_line(caplog: pytest.LogCaptureFixture) -> None:
    async def work(settled: Settled) -> Response:
        settled(0, [0])
        await client.has_part.wait()
        raise KeyError("x")

    client = Client()
    response = await answer_in_lines(work, form=FOUR_STRINGS)
    with caplog.at_level(logging.ERROR):
        await response(client.scope, client.receive, client.send)
    last = orjson.loads(client.parts[-1]["body"])
    assert last["error_type"] == "internal_error"
    assert access_of(client.scope).status == 500
    assert [record.message for record in caplog.records] == ["unexpected error"]


async def test_nothing_more_is_sent_to_a_client_that_went_away() -> None:
    steps, client = Steps(Response(status_code=CANCELLED.status)), Client()
    response = await answer_in_lines(steps.work, form=FOUR_STRINGS)
    sending = asyncio.create_task(response(client.scope, client.receive, client.send))
    for part in (2, 3):
        await until(client, part)
        steps.next.set()
    await sending
    assert client.lines == [places(3), places(2)]
    assert access_of(client.scope).status == CANCELLED.status


async def test_the_work_ends_with_its_response() -> None:
    steps, client = Steps(json_answer({})), Client()
    response = await answer_in_lines(steps.work, form=FOUR_STRINGS)
    sending = asyncio.create_task(response(client.scope, client.receive, client.send))
    await until(client, 2)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert steps.cancelled


async def test_work_that_has_settled_nothing_ends_with_its_request() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work(_settled: Settled) -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    request = asyncio.create_task(answer_in_lines(work, form=FOUR_STRINGS))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert ended.is_set()
