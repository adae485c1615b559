"""A query that is too long is cut where a caller asks for it by name, in every dialect that has such a field."""

from typing import Any

import pytest

from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of

_LONG = " ".join(f"w{number}" for number in range(600))
# Of 512 tokens; the fake model needs one to separate the two texts.
_HALF = 255
_PINECONE = {"X-Pinecone-Api-Version": "2025-10"}
_DOCUMENTS = ["b", "a"]

_ASKED = [
    ("/rerank", {"texts": _DOCUMENTS, "truncate": True}, {}),
    ("/rerank", {"documents": _DOCUMENTS, "truncation": True}, {}),
    ("/v1/ranking", {"passages": [{"text": text} for text in _DOCUMENTS], "truncate": "END"}, {}),
    ("/rerank", {"documents": _DOCUMENTS, "parameters": {"truncate": "END"}}, _PINECONE),
    ("/v2/rerank", {"documents": _DOCUMENTS, "truncation": "truncate"}, {}),
]
_NOT_ASKED = [
    ("/rerank", {"texts": _DOCUMENTS}, {}),
    ("/rerank", {"texts": _DOCUMENTS, "truncate": False}, {}),
    ("/rerank", {"documents": _DOCUMENTS, "truncation": False}, {}),
    ("/v1/ranking", {"passages": [{"text": "a"}], "truncate": "NONE"}, {}),
    ("/rerank", {"documents": _DOCUMENTS, "parameters": {"truncate": "NONE"}}, _PINECONE),
    ("/v2/rerank", {"documents": _DOCUMENTS, "truncation": "chunk"}, {}),
    ("/v2/rerank", {"documents": _DOCUMENTS}, {}),
]


@pytest.mark.parametrize(("path", "fields", "headers"), _ASKED, ids=range(len(_ASKED)))
async def test_a_client_that_allows_truncation_gets_it_with_a_warning(
    open_api: OpenApi, path: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async with open_api(FakeService()) as api:
        query: object = {"text": _LONG} if "passages" in fields else _LONG
        answer = await api.post(path, {"query": query, **fields}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-truncated-query-tokens"] == str(600 - _HALF)
        short = " ".join(_LONG.split()[:_HALF])
        query = {"text": short} if "passages" in fields else short
        whole = await api.post(path, {"query": query, **fields}, headers=headers)
        assert "x-truncated-query-tokens" not in whole.headers
        assert _order(answer.json()) == _order(whole.json())


def _order(answer: Any) -> list[tuple[int, float]]:
    lists = ("results", "data", "rankings")
    results = answer if isinstance(answer, list) else next(answer[name] for name in lists if name in answer)
    names = ("score", "relevance_score", "logit")
    return [(result["index"], next(result[name] for name in names if name in result)) for result in results]


@pytest.mark.parametrize(("path", "fields", "headers"), _NOT_ASKED, ids=range(len(_NOT_ASKED)))
async def test_else_it_is_refused(
    open_api: OpenApi, path: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async with open_api(FakeService()) as api:
        query: object = {"text": _LONG} if "passages" in fields else _LONG
        answer = await api.post(path, {"query": query, **fields}, headers=headers)
        assert is_our_error(answer, 400, "invalid_request"), answer.text


async def test_the_end_that_is_named_is_cut_off(open_api: OpenApi) -> None:
    async with open_api(FakeService()) as api:
        body = {"query": _LONG, "texts": ["a"], "truncate": True, "truncation_direction": "Left", "raw_scores": True}
        (result,) = (await api.post("/rerank", body)).json()
        assert result["score"] == score_of(" ".join(_LONG.split()[-_HALF:]), "a")


async def test_cohere_and_jina_are_warned_in_the_answer(open_api: OpenApi) -> None:
    async with open_api(FakeService()) as api:
        answer = await api.post("/v2/rerank", {"query": _LONG, "documents": ["a"], "truncation": "truncate"})
        assert answer.json()["meta"]["warnings"] == ["the query was too long: 345 tokens of it not read"]


async def test_a_query_that_fits_is_not_cut(api: Api) -> None:
    answer = await api.post("/rerank", {"query": " ".join(_LONG.split()[:180]), "texts": ["a b c"], "truncate": True})
    assert answer.status_code == 200
    assert "x-truncated-query-tokens" not in answer.headers
