"""What is the same each time is made once, and is what it was."""

import asyncio

import pytest

from rerankd.api.fixed_answers import FixedAnswer
from tests.api.conftest import Api, OpenApi, is_our_error

_PAGES = ["/", "/playground.css", "/playground.js", "/docs", "/docs/swagger-ui-bundle.js"]


def test_an_answer_is_made_once_and_only_when_it_is_wanted() -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"{}"

    answer = FixedAnswer(make, "application/json")
    assert made == []
    assert [answer.answer({}).body for _ in range(3)] == [b"{}"] * 3
    assert made == [1]


@pytest.mark.parametrize("path", ["/health", "/openapi.json", *_PAGES])
async def test_head_and_other_methods_are_answered_as_they_should_be(api: Api, path: str) -> None:
    got = await api.client.get(path)
    head = await api.client.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert head.headers["content-length"] == got.headers["content-length"]
    assert got.headers["x-request-id"]
    refused = await api.client.post(path)
    assert is_our_error(refused, 405, "invalid_request")
    assert refused.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", _PAGES)
async def test_a_page_that_the_client_has_is_not_sent_again(api: Api, path: str) -> None:
    etag = (await api.client.get(path)).headers["etag"]
    answer = await api.client.get(path, headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_the_document_is_made_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await api.client.get("/openapi.json")
    monkeypatch.setattr(api.app, "openapi", None)
    assert (await api.client.get("/openapi.json")).content == first.content


async def test_what_is_private_stays_so(open_api: OpenApi) -> None:
    async with open_api(api_keys="secret", private=True) as api:
        for path in _PAGES:
            assert (await api.client.get(path)).status_code == 404
        assert (await api.client.get("/openapi.json")).status_code == 401
        authorized = {"Authorization": "Bearer secret"}
        assert (await api.client.get("/openapi.json", headers=authorized)).status_code == 200


async def test_metrics_are_rendered_once_for_simultaneous_requests(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    collect = api.observer.registry.collect

    def counting() -> object:
        nonlocal written
        written += 1
        return collect()

    monkeypatch.setattr(api.observer.registry, "collect", counting)
    answers = await asyncio.gather(*(api.client.get("/metrics") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert written < 10
    await api.client.post("/rerank", json={"query": "q", "documents": ["a"]})
    assert 'rerank_requests_total{dialect="jina"' in (await api.client.get("/metrics")).text
