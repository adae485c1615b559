"""No request leaves reference cycles behind: they would hold its body until the garbage collector comes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
import pytest

from tests.api.conftest import Api, OpenApi
from tests.fakes import FakeService
from tests.garbage import kept_garbage, of_ours

_ASKED: Final = {"query": "q", "documents": ["a", "bb", "ccc"]}
_TIMES: Final = 5


async def _post(
    api: Api, body: bytes, *, path: str = "/v2/rerank", headers: dict[str, str] | None = None, leave: bool = False
) -> int:
    """The status of the answer; 0 where the client leaves first. httpx would leave cycles of its own."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in (headers or {}).items()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    if leave:
        messages.append({"type": "http.disconnect"})
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()  # type: ignore[return-value] # never

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await api.app(scope, receive, send)  # type: ignore[arg-type] # as a server calls it
    return statuses[0] if statuses and not leave else 0


Request = Callable[[Api], Awaitable[int]]


def _body(**fields: object) -> bytes:
    return orjson.dumps({**_ASKED, **fields})


async def _score(api: Api, texts: list[str], *, deadline_ms: str = "30000") -> int:
    """Several queries, which are worked on at the same time."""
    body = orjson.dumps({"text_1": [f"query {number}" for number in range(len(texts))], "text_2": texts})
    return await _post(api, body, path="/v1/score", headers={"x-request-deadline-ms": deadline_ms})


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (lambda api: _post(api, _body()), 200),
        (lambda api: _post(api, _body(documents=["a"] * 2000)), 200),
        (lambda api: _post(api, _body(documents=["a" * 400] * 2000)), 200),
        (lambda api: _post(api, _body(documents=["a"] * 2001)), 413),
        (lambda api: _post(api, _body(documents=["a" * 400] * 2001)), 413),
        (lambda api: _post(api, _body(documents=[])), 400),
        (lambda api: _post(api, _body(documents=7)), 400),
        (lambda api: _post(api, _body(model="other")), 404),
        (lambda api: _post(api, b'{"query": '), 400),
        (lambda api: _post(api, b'{"query": ' + b" " * 300_000), 400),
        (lambda api: _post(api, b"[]"), 400),
        (lambda api: _post(api, _body(), headers={"x-request-deadline-ms": "0.001"}), 504),
        (lambda api: _post(api, _body(documents=["a"] * 2000), headers={"x-request-deadline-ms": "5"}), 504),
        (lambda api: _post(api, _body(), headers={"x-request-deadline-ms": "soon"}), 400),
        (lambda api: _post(api, _body(documents=["a", "poison"])), 500),
        (lambda api: _score(api, ["a", "b"]), 200),
        (lambda api: _score(api, ["a", "poison", "b"]), 500),
        (lambda api: _score(api, ["a"] * 200, deadline_ms="1"), 504),
        (lambda api: _post(api, _body(), leave=True), 0),
        (lambda api: _post(api, _body(documents=["a" * 400] * 2000), leave=True), 0),
    ],
    ids=[
        "answered",
        "many",
        "large",
        "too many",
        "large and too many",
        "no documents",
        "no list",
        "unknown model",
        "cut off",
        "large and cut off",
        "a list",
        "too late",
        "too late for many",
        "odd deadline",
        "failed",
        "queries",
        "one of the queries failed",
        "queries too late",
        "gone",
        "large and gone",
    ],
)
async def test_a_request_leaves_no_cycles(open_api: OpenApi, request_: Request, status: int) -> None:
    async with open_api(FakeService(max_documents=2000)) as api:
        await request_(api)
        with kept_garbage() as garbage:
            assert [await request_(api) for _ in range(_TIMES)] == [status] * _TIMES
        assert sorted(of_ours(garbage)) == []
