"""A client that disconnects: its work is cancelled and counted, and it is not logged as an error."""

import json
import logging

import pytest
from starlette.types import Message, Scope

from tests.api.conftest import Api, OpenApi
from tests.fakes import ArithmeticEngine, FakeService

_SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": "/rerank",
    "raw_path": b"/rerank",
    "query_string": b"",
    "headers": [],
    "http_version": "1.1",
    "scheme": "http",
    "server": ("test", 80),
    "client": ("test", 1),
    "root_path": "",
}


async def _call(api: Api, *messages: Message) -> list[Message]:
    """Call the application as a server does whose client sends these messages."""
    arriving = iter(messages)
    sent: list[Message] = []

    async def receive() -> Message:
        return next(arriving)

    async def send(message: Message) -> None:
        sent.append(dict(message))

    await api.app(dict(_SCOPE), receive, send)
    return sent


async def test_work_of_a_client_that_went_away_is_dropped_and_counted(open_api: OpenApi) -> None:
    async with open_api(FakeService(engine=ArithmeticEngine(pairs=1, seconds_per_pass=0.01))) as api:
        body = json.dumps({"query": "q", "documents": ["a b c"] * 100}).encode()
        sent = await _call(api, {"type": "http.request", "body": body}, {"type": "http.disconnect"})
        assert sent[0]["status"] == 499
        assert api.requests_counted(dialect="jina", status=499) == 1
        assert (await api.post("/rerank", {"query": "q", "documents": ["a"]})).status_code == 200
        assert len(api.engine.batches) < 10


_MANY_NUMBERS = json.dumps({"query": "q", "documents": [{f"f{number}": 1.5 for number in range(40_000)}]}).encode()


async def test_documents_of_a_client_that_went_away_are_read_no_further(open_api: OpenApi) -> None:
    async with open_api() as api:
        messages: list[Message] = [{"type": "http.request", "body": _MANY_NUMBERS}, {"type": "http.disconnect"}]
        sent = await _call(api, *messages)
        assert sent[0]["status"] == 499
        assert api.requests_counted(dialect="jina", status=499, model="none") == 1


async def test_documents_are_read_no_longer_than_to_the_deadline(open_api: OpenApi) -> None:
    async with open_api() as api:
        answer = await api.post("/rerank", content=_MANY_NUMBERS, headers={"X-Request-Deadline-Ms": "25"})
        assert answer.status_code == 504
        assert api.requests_counted(dialect="jina", status=504, model="none") == 1


async def test_a_client_that_goes_away_in_mid_body_is_no_error_of_ours(
    open_api: OpenApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_api() as api:
        caplog.clear()
        await _call(api, {"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"})
        assert api.requests_counted(dialect="jina", status=499, model="none") == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
