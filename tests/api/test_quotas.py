"""What requests cost a key: those that succeed, fail, are given up, run at once, or come out of the cache."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from rerankd.cache.memory import MemoryCache
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import ArithmeticEngine, FakeService

_A = {"Authorization": "Bearer secret-a"}
_B = {"Authorization": "Bearer secret-b"}
_LIMIT = 6000
# The quota fills by a hundred tokens a second: no test takes so long that this matters.
_NOISE = 500


def _keys(folder: Path, limits: str = f"tokens_per_min = {_LIMIT}") -> Path:
    path = folder / "keys.toml"
    path.write_text(
        f'[[key]]\nname = "a"\nkey = "secret-a"\n{limits}\n[[key]]\nname = "b"\nkey = "secret-b"\n', encoding="utf-8"
    )
    return path


def _body(documents: int, *, first: int = 0, words: int = 98) -> dict[str, Any]:
    """Pairs of a hundred tokens; no two documents are equal."""
    texts = [" ".join(f"{number}-{word}" for word in range(words)) for number in range(first, first + documents)]
    return {"query": "q", "documents": texts}


def _passes(engine: ArithmeticEngine) -> int:
    """How many passes held pairs of ours; a canary's are shorter."""
    return sum(len(batch[0]) == 100 for batch in engine.batches)


async def _used(api: Api) -> float:
    """How many of key a's tokens were used: as long as anything is left a request is taken, and what it overdraws is
    told by how long the next one must wait.
    """
    assert (await api.post("/rerank", _body(80, first=10_000), headers=_A)).status_code == 200
    refused = await api.post("/rerank", _body(1), headers=_A)
    assert is_our_error(refused, 429, "rate_limited")
    overdrawn = float(refused.headers["Retry-After-Ms"]) / 1000 * _LIMIT / 60 - 1
    return overdrawn + _LIMIT - 8000


async def _given_up(api: Api, body: dict[str, Any], *, when: asyncio.Event) -> int:
    """Send a request whose client goes away; the status that is logged for it."""
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
    statuses: list[int] = []

    async def receive() -> Message:
        for message in messages:
            return message
        await when.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http", "method": "POST", "path": "/rerank", "raw_path": b"/rerank", "query_string": b"",
        "headers": [(b"authorization", _A["Authorization"].encode())], "http_version": "1.1", "scheme": "http",
        "server": ("test", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    await api.app(scope, receive, send)
    return statuses[0]


async def test_what_is_answered_costs_what_its_usage_says(open_api: OpenApi, tmp_path: Path) -> None:
    async with open_api(api_keys_file=_keys(tmp_path)) as api:
        answer = await api.post("/rerank", _body(20), headers=_A)
        assert answer.json()["usage"]["total_tokens"] == 2000
        assert await _used(api) == pytest.approx(2000, abs=_NOISE)


async def test_a_request_that_is_given_up_costs_what_went_to_the_engine(open_api: OpenApi, tmp_path: Path) -> None:
    engine = ArithmeticEngine(tokens=1000, pairs=10, seconds_per_pass=0.05)
    async with open_api(FakeService(engine=engine), api_keys_file=_keys(tmp_path)) as api:
        gone, passes = asyncio.Event(), _passes(engine)
        asking = asyncio.ensure_future(_given_up(api, _body(50), when=gone))
        while _passes(engine) == passes:  # noqa: ASYNC110 - the engine runs in a thread
            await asyncio.sleep(0.005)
        gone.set()
        assert await asking == 499
        used = await _used(api)
        assert 1000 - _NOISE <= used <= 2000 + 3000 / 32 + _NOISE, "a pass, and perhaps the next one"


async def test_clients_that_hang_up_again_and_again_use_their_quota_up(open_api: OpenApi, tmp_path: Path) -> None:
    engine = ArithmeticEngine(tokens=1000, pairs=10, seconds_per_pass=0.05)
    async with open_api(FakeService(engine=engine), api_keys_file=_keys(tmp_path)) as api:
        statuses = []
        for number in range(20):
            gone, passes = asyncio.Event(), _passes(engine)
            asking = asyncio.ensure_future(_given_up(api, _body(50, first=100 * number), when=gone))
            while _passes(engine) == passes and not asking.done():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)
            gone.set()
            statuses.append(await asking)
        assert statuses[:4] == [499] * 4
        assert statuses.count(499) <= 9
        assert statuses[-1] == 429
        assert sum(len(ids) for batch in engine.batches for ids in batch) <= _LIMIT + 3000


async def test_a_request_that_fails_costs_what_went_to_the_engine(open_api: OpenApi, tmp_path: Path) -> None:
    engine = ArithmeticEngine(tokens=4000)
    async with open_api(FakeService(engine=engine), api_keys_file=_keys(tmp_path)) as api:
        api.engine.broken = True
        assert (await api.post("/rerank", _body(20), headers=_A)).status_code == 500
        api.engine.broken = False
        assert await _used(api) == pytest.approx(2000, abs=_NOISE)


async def test_a_request_that_is_refused_before_any_work_costs_nothing(open_api: OpenApi, tmp_path: Path) -> None:
    async with open_api(FakeService(max_waiting_tokens=10**6), api_keys_file=_keys(tmp_path)) as api:
        for body in ({"query": "", "documents": ["a"]}, {"query": "q", "documents": []}, {"query": "q"}):
            assert (await api.post("/rerank", body, headers=_A)).status_code == 400
        assert (await api.post("/rerank", {**_body(50), "model": "none"}, headers=_A)).status_code == 404
        assert await _used(api) == pytest.approx(0, abs=_NOISE)


async def test_requests_at_once_overdraw_a_quota_by_one_of_them_at_most(open_api: OpenApi, tmp_path: Path) -> None:
    engine = ArithmeticEngine(seconds_per_pass=0.002)
    async with open_api(FakeService(engine=engine), api_keys_file=_keys(tmp_path)) as api:
        bodies = [_body(20, first=20 * number) for number in range(60)]
        answers = await asyncio.gather(*(api.post("/rerank", body, headers=_A) for body in bodies))
        usage = [answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(tokens == 2000 for tokens in usage)
        assert sum(usage) <= _LIMIT + 2000 + _NOISE
        assert len(usage) >= 2


async def test_pairs_out_of_the_cache_cost_as_much_also_at_once(open_api: OpenApi, tmp_path: Path) -> None:
    fake = FakeService(cache=MemoryCache(max_entries=10_000))
    async with open_api(fake, api_keys_file=_keys(tmp_path)) as api:
        assert (await api.post("/rerank", _body(20), headers=_B)).status_code == 200
        answers = await asyncio.gather(*(api.post("/rerank", _body(20), headers=_A) for _ in range(30)))
        answered = [answer for answer in answers if answer.status_code == 200]
        assert 2 <= len(answered) <= 4
        assert len(api.engine.batches) <= 20


async def test_a_key_without_a_quota_does_not_pay_for_another(open_api: OpenApi, tmp_path: Path) -> None:
    async with open_api(api_keys_file=_keys(tmp_path)) as api:
        await _used(api)
        for number in range(5):
            assert (await api.post("/rerank", _body(60, first=60 * number), headers=_B)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/fake", "/info"])
async def test_whatever_a_key_asks_for_counts_as_a_request(open_api: OpenApi, tmp_path: Path, path: str) -> None:
    async with open_api(api_keys_file=_keys(tmp_path, "requests_per_s = 2")) as api:
        statuses = [(await api.client.get(path, headers=_A)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert is_our_error(await api.post("/rerank", _body(1), headers=_A), 429, "rate_limited")
        assert (await api.client.get(path, headers=_B)).status_code == 200


async def test_a_key_whose_tokens_are_used_up_may_still_ask_for_the_models(open_api: OpenApi, tmp_path: Path) -> None:
    async with open_api(api_keys_file=_keys(tmp_path)) as api:
        await _used(api)
        assert (await api.client.get("/v1/models", headers=_A)).status_code == 200
