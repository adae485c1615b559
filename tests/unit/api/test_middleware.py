"""What happens around every request, where a whole application cannot show it."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerankd.api.access import access_of
from rerankd.api.lifecycle import Lifecycle
from rerankd.api.middleware import BodyBounds, BodyLimit, RequestContext
from rerankd.errors import BodyTooSlow, InvalidRequest, Overloaded, RequestTooLarge
from rerankd.gateway.held_bytes import HeldBytes

_SCOPE: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
_BOUNDS = BodyBounds(max_bytes=10, timeout_s=30)


def _limit(app: ASGIApp, *, bounds: BodyBounds = _BOUNDS, max_held_bytes: int = 15) -> BodyLimit:
    """Callers name themselves in the header X-Key."""

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            access_of(scope).call.key = Headers(scope=scope).get("x-key", "")
        await app(scope, receive, send)

    return BodyLimit(identified, bounds=bounds, held=HeldBytes(max_held_bytes))


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


class _Recorder:
    """The end of a chain of applications; answers with half a body, then raises."""

    def __init__(self, error: Exception | None = None, *, started: bool = True) -> None:
        self.scopes: list[str] = []
        self._error = error
        self._started = started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope["type"])
        if self._started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if self._error is not None:
            raise self._error


async def _run(application: RequestContext | BodyLimit, scope: Scope) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(dict(message))

    await application(scope, _nothing, send)
    return sent


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_request_is_passed_on(kind: str) -> None:
    inner = _Recorder(started=False)
    for middleware in (RequestContext(inner, lifecycle=Lifecycle()), _limit(inner, bounds=_BOUNDS)):
        assert await _run(middleware, {"type": kind}) == []
    assert inner.scopes == [kind, kind]


async def test_a_bug_before_the_answer_began_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    sent = await _run(RequestContext(_Recorder(KeyError("x"), started=False), lifecycle=Lifecycle()), _SCOPE)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 500
    assert "unexpected error" in caplog.text


async def test_a_bug_in_the_middle_of_an_answer_breaks_it_off(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError):
        await _run(RequestContext(_Recorder(KeyError("x")), lifecycle=Lifecycle()), _SCOPE)
    assert "unexpected error" in caplog.text


@pytest.mark.parametrize(
    ("path", "status", "level"),
    [
        ("/rerank", 200, "INFO"),
        ("/health", 200, "DEBUG"),
        ("/ready", 503, "DEBUG"),
        ("/metrics", 200, "DEBUG"),
        ("/metrics", 401, "INFO"),
    ],
)
async def test_what_load_balancers_see_all_the_time_is_logged_quietly(
    path: str, status: int, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})

    with caplog.at_level(logging.DEBUG, logger="rerankd.access"):
        await _run(RequestContext(answer, lifecycle=Lifecycle()), {**_SCOPE, "path": path})
    (record,) = caplog.records
    assert (record.levelname, record.message) == (level, "request")
    assert (vars(record)["path"], vars(record)["status"]) == (path, status)


class _Reader:
    """The end of a chain of applications; reads its whole body and then waits for `go`."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await self.go.wait()


async def _read(limit: BodyLimit, *parts: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send a body in parts; with none, send nothing at all."""
    left = list(parts)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(_message: Message) -> None:
        raise AssertionError("a refusal is raised, not sent")

    await limit({**_SCOPE, "headers": list(headers)}, receive, send)


@pytest.mark.parametrize("parts", [(b"",), (b"0123456789",), (b"01234", b"", b"56789"), (b"", b"x")])
async def test_a_body_within_its_bounds_arrives_whole(parts: tuple[bytes, ...]) -> None:
    reader = _Reader()
    reader.go.set()
    await _read(_limit(reader, bounds=_BOUNDS), *parts)
    assert reader.bodies == [b"".join(parts)]


@pytest.mark.parametrize(
    ("parts", "headers"),
    [
        ((b"0123456789x",), []),
        ((b"01234", b"56789", b"x"), []),
        ((b"x",), [(b"content-length", b"11")]),
    ],
)
async def test_a_body_with_a_byte_too_many_is_refused(
    parts: tuple[bytes, ...], headers: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(RequestTooLarge, match=r"11 bytes or more; at most 10"):
        await _read(_limit(_Reader(), bounds=_BOUNDS), *parts, headers=headers)


async def test_a_packed_body_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidRequest, match="'gzip' is not supported"):
        await _read(_limit(_Reader(), bounds=_BOUNDS), headers=[(b"content-encoding", b"gzip")])


async def test_a_body_that_does_not_arrive_in_time_is_given_up() -> None:
    with pytest.raises(BodyTooSlow, match=r"within 0\.01 s"):
        await _read(_limit(_Reader(), bounds=replace(_BOUNDS, timeout_s=0.01)))


async def test_bodies_share_a_bound_until_they_are_answered_and_one_alone_is_always_taken() -> None:
    reader = _Reader()
    limit = _limit(reader, max_held_bytes=8)
    first = asyncio.create_task(_read(limit, b"0123456789"))
    await asyncio.sleep(0)
    assert reader.bodies == [b"0123456789"]
    with pytest.raises(Overloaded, match="other requests hold 10 bytes"):
        await _read(limit, b"x")
    reader.go.set()
    await first
    await _read(limit, b"x")
    assert reader.bodies[1:] == [b"x"]


async def test_what_a_refused_body_held_is_given_back() -> None:
    reader = _Reader()
    limit = _limit(reader, max_held_bytes=8)
    reader.go.set()
    for _ in range(3):
        with pytest.raises(RequestTooLarge):
            await _read(limit, b"0123456789", b"x")
    await asyncio.gather(_read(limit, b"01234567"), _read(limit, b""))
    assert reader.bodies == [b"01234567", b""]


async def test_an_answer_is_held_until_it_is_out() -> None:
    out = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"0123456789"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await out.wait()

    limit = _limit(answer, max_held_bytes=12)
    first = asyncio.create_task(limit(dict(_SCOPE), receive, send))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="other requests hold 10 bytes"):
        await _read(limit, b"yyy")
    out.set()
    await first
    await asyncio.wait_for(limit(dict(_SCOPE), receive, send), 5)


async def test_a_keys_unfinished_bodies_leave_room_for_another_key() -> None:
    reader = _Reader()
    limit = _limit(reader, max_held_bytes=40)
    mine, yours = [(b"x-key", b"mine")], [(b"x-key", b"yours")]
    held = [asyncio.create_task(_read(limit, b"0123456789", headers=mine)) for _ in range(5)]
    await asyncio.sleep(0)
    assert [task.done() for task in held] == [False, False, True, True, True]
    assert all(isinstance(task.exception(), Overloaded) for task in held[2:])
    yours_held = asyncio.create_task(_read(limit, b"0123456789", headers=yours))
    await asyncio.sleep(0)
    assert len(reader.bodies) == 3
    reader.go.set()
    await asyncio.gather(*held[:2], yours_held)


async def test_the_request_is_held_until_the_last_part_of_its_answer() -> None:
    held: list[int] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for line in (b"a", b"bb", b"cccccccccccccc"):
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"d"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"0123456789", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            held.append(counted.total)

    counted = HeldBytes(100)
    limit = BodyLimit(answer, bounds=_BOUNDS, held=counted)
    await limit(dict(_SCOPE), receive, send)
    assert held == [10, 10, 14, 1]
    assert counted.total == 0
