"""What requests hold while they are worked on, and until their answers are read: bounded in all, and for each key."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message

from rerankd.gateway.held_bytes import DOCUMENT_BYTES, QUERY_BYTES
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi
from tests.fakes import ArithmeticEngine, FakeService

_MANY = {"query": "q", "explain": True, "documents": [""] * 100}
_MAX = 4 * 100 * DOCUMENT_BYTES


def _held(api: Api) -> float:
    return api.observer.registry.get_sample_value("rerank_held_bytes") or 0.0


async def _until(condition: Callable[[], bool]) -> None:
    end = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("path", "body", "least"),
    [
        ("/v2/rerank", _MANY | {"documents": ["a", *[""] * 99]}, 100 * DOCUMENT_BYTES),
        ("/rerank", {"query": "q", "texts": ["a", *[""] * 99]}, 100 * DOCUMENT_BYTES),
        ("/score", {"text_1": [f"q{n}" for n in range(20)], "text_2": ["a"] * 20}, 20 * QUERY_BYTES),
    ],
    ids=["documents", "texts", "queries"],
)
async def test_documents_and_queries_count_while_they_are_worked_on(
    open_api: OpenApi, path: str, body: dict[str, Any], least: int
) -> None:
    engine = ArithmeticEngine()
    async with open_api(FakeService(activation=sigmoid, engine=engine), max_held_bytes=_MAX) as api:
        engine.gate.clear()
        asked = [asyncio.create_task(api.post(path, body)) for _ in range(6)]
        await _until(lambda: sum(task.done() for task in asked) >= 6 - _MAX // least)
        assert least < _held(api) <= _MAX
        engine.gate.set()
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(
            "hold" in answer.json()["message"] and "retry-after" in answer.headers
            for answer in answers
            if answer.status_code == 429
        )
        assert _held(api) == 0


async def _ask(api: Api, key: str, body: dict[str, Any], read: asyncio.Event, unread: list[int]) -> int:
    """Ask as a client that does not read its answer before it is told to; `unread` has the sizes of such answers."""
    text, status = json.dumps(body).encode(), 0

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif status == 200:
            unread.append(len(message["body"]))
            await read.wait()

    parts = [text]
    headers = [(b"host", b"x"), (b"authorization", b"Bearer " + key.encode())]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v2/rerank", "raw_path": b"/v2/rerank"}
    scope |= {"query_string": b"", "headers": headers, "root_path": "", "scheme": "http", "server": ("x", 80)}
    await api.app(scope, receive, send)
    return status


async def test_answers_that_a_key_does_not_read_leave_room_for_another_key(open_api: OpenApi) -> None:
    """Metadata comes back twice where documents do: the answers are larger than the bodies."""
    mine, yours = "mine" * 8, "your" * 8
    body = {"query": "q", "return_documents": True, "documents": [{"text": "a", "metadata": "x" * 10_000}] * 2}
    limit = 400_000
    engine = ArithmeticEngine()
    fake = FakeService(activation=sigmoid, engine=engine)
    async with open_api(fake, api_keys=(mine, yours), max_held_bytes=limit) as api:
        never, at_once = asyncio.Event(), asyncio.Event()
        at_once.set()
        unread: list[int] = []
        engine.gate.clear()
        asked = [asyncio.create_task(_ask(api, mine, body, never, unread)) for _ in range(15)]
        await _until(lambda: any(task.done() for task in asked))
        engine.gate.set()
        await _until(lambda: len(unread) + sum(task.done() for task in asked) == len(asked))
        assert max(unread) > 40_000
        assert sum(unread) <= _held(api) <= limit / 2
        assert await _ask(api, yours, {"query": "q", "documents": ["a"]}, at_once, []) == 200
        never.set()
        statuses = await asyncio.gather(*asked)
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 4
        assert _held(api) == 0
