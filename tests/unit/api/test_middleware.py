"""What happens around every request, where a whole application cannot show it."""

import logging

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.middleware import BodyLimit, RequestContext

_SCOPE: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}


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
    for middleware in (RequestContext(inner), BodyLimit(inner, max_bytes=1)):
        assert await _run(middleware, {"type": kind}) == []
    assert inner.scopes == [kind, kind]


async def test_a_bug_before_the_answer_began_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    sent = await _run(RequestContext(_Recorder(KeyError("x"), started=False)), _SCOPE)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 500
    assert "unexpected error" in caplog.text


async def test_a_bug_in_the_middle_of_an_answer_breaks_it_off(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError):
        await _run(RequestContext(_Recorder(KeyError("x"))), _SCOPE)
    assert "unexpected error" in caplog.text


@pytest.mark.parametrize(
    ("path", "status", "level"),
    [("/rerank", 200, "INFO"), ("/health", 200, "DEBUG"), ("/ready", 503, "INFO"), ("/metrics", 200, "DEBUG")],
)
async def test_probes_that_succeed_are_logged_quietly(
    path: str, status: int, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})

    with caplog.at_level(logging.DEBUG, logger="app.access"):
        await _run(RequestContext(answer), {**_SCOPE, "path": path})
    (record,) = caplog.records
    assert (record.levelname, record.message) == (level, "request")
    assert (vars(record)["path"], vars(record)["status"]) == (path, status)
