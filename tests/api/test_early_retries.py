"""Large requests that come back too early are refused unread while another key has a request here."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from rerankd.gateway.early_retries import EarlyRetries
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import ArithmeticEngine, FakeService

_PATH = "/v2/rerank"
_SIZE = 100_000
_NO_JSON = b"{" + b" " * _SIZE
# For the answer to a retry, which is late; and for tests, which are not.
_SOON = {"X-Request-Deadline-Ms": "50"}


def _key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def _body(name: str, documents: int) -> dict[str, Any]:
    return {"query": name, "documents": [f"{name} {number}" for number in range(documents)]}


def _queued(api: Api) -> float:
    return api.observer.registry.get_sample_value("rerank_queue_tokens", {"model": "fake"}) or 0.0


async def _until(condition: Callable[[], bool]) -> None:
    end = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.001)


@pytest.fixture
async def crowded(open_api: OpenApi) -> AsyncIterator[Api]:
    """The queue of the key "heavy" is full, and a request of the key "light" waits."""
    engine = ArithmeticEngine(pairs=1)
    fake = FakeService(activation=sigmoid, engine=engine, max_waiting_tokens=60)
    async with open_api(fake, api_keys="heavy,light") as api:
        engine.gate.clear()
        heavy = asyncio.create_task(api.post(_PATH, _body("first", 30), headers=_key("heavy")))
        await _until(lambda: bool(_queued(api)))
        light = asyncio.create_task(api.post(_PATH, _body("light", 2), headers=_key("light")))
        await _until(lambda: api.gateway.pacing.is_shared)
        yield api
        engine.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(heavy, light)} == {200}


def _refuse(api: Api, key: str = "key-1", *, size: int = _SIZE) -> None:
    """Refuse a request of this size a moment ago, to be asked again in a minute."""
    api.gateway.early_retries = EarlyRetries(remembered_s=60)
    api.gateway.early_retries.refused(key, "fake", size=size, retry_after_s=60, now=api.gateway.service.clock())


async def _retry(api: Api, key: str, content: bytes = _NO_JSON, **headers: str) -> httpx.Response:
    return await api.post(_PATH, content=content, headers=_key(key) | _SOON | headers)


async def test_a_retry_is_refused_unread(crowded: Api) -> None:
    _refuse(crowded)
    for path in (_PATH, "/rerank"):
        answer = await crowded.post(path, content=_NO_JSON, headers=_key("heavy") | _SOON)
        assert is_our_error(answer, 429, "overloaded")
        assert 50 <= int(answer.headers["Retry-After"]) <= 60
    assert crowded.gateway.held.of_key["key-1"] < _SIZE, "nothing of an unread body is held"


@pytest.mark.parametrize("key", ["light", "heavy"])
async def test_others_and_smaller_ones_are_read(crowded: Api, key: str) -> None:
    _refuse(crowded, size=_SIZE if key == "light" else 2 * _SIZE)
    assert is_our_error(await _retry(crowded, key), 400, "invalid_request")


async def test_a_key_alone_is_read(open_api: OpenApi) -> None:
    async with open_api(FakeService(activation=sigmoid), api_keys="heavy,light") as api:
        _refuse(api)
        assert is_our_error(await _retry(api, "heavy"), 400, "invalid_request")


async def test_a_full_queue_makes_retries_early(crowded: Api) -> None:
    before = crowded.gateway.service.clock()
    content = json.dumps(_body("more", 8) | {"note": " " * _SIZE}).encode()
    answer = await crowded.post(_PATH, content=content, headers=_key("heavy"))
    assert is_our_error(answer, 429, "overloaded")
    assert "tokens wait" in answer.json()["message"]
    early = crowded.gateway.early_retries
    assert early.wait_s("key-1", ["fake"], size=len(content), now=before) > 0
    assert early.wait_s("key-1", ["fake"], size=_SIZE // 2, now=before) == 0
