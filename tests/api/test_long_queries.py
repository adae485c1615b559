"""A query that is too long is cut where a caller asks for it by name, in every dialect that has such a field."""

from typing import Any

import pytest

from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, WordScorer, score_of

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


async def test_a_query_may_be_cut_to_a_number_of_tokens(open_api: OpenApi) -> None:
    async with open_api(FakeService()) as api:
        body = {"query": "a b c d e", "documents": ["x y", "z"], "use_activation": False}
        for path, name in (("/v1/rerank", "results"), ("/score", "data")):
            answer = await api.post(path, {**body, "max_tokens_per_query": 3})
            assert answer.headers["x-truncated-query-tokens"] == "2"
            assert _order({"results": answer.json()[name]}) == _order(
                {"results": (await api.post(path, {**body, "query": "a b c"})).json()[name]}
            )
        whole = await api.post("/v1/rerank", {**body, "max_tokens_per_query": 0})
        assert "x-truncated-query-tokens" not in whole.headers


async def test_a_query_that_is_longer_than_allowed_is_an_error_where_cuts_are(api: Api) -> None:
    body = {"query": "a b c", "documents": ["a"], "max_tokens_per_query": 2, "truncation": "error"}
    answer = await api.post("/v2/rerank", body)
    assert is_our_error(answer, 400, "invalid_request")
    assert "the query has 1 tokens more than max_tokens_per_query" in answer.json()["message"]


@pytest.mark.parametrize(
    ("tokens", "query", "document"),
    [
        # The fake model reads one token between the two.
        (6, "a b", "d1 d2 d3"),
        (100, "a b", "d1 d2 d3 d4 d5"),
        (4, "a b", "d1"),
        # No room is left: the query keeps half.
        (3, "a", "d1"),
        (-1, "a b", "d1 d2 d3 d4 d5"),
    ],
)
async def test_a_pair_may_be_cut_to_a_number_of_tokens(
    open_api: OpenApi, tokens: int, query: str, document: str
) -> None:
    async with open_api(FakeService()) as api:
        body = {
            "query": "a b",
            "documents": ["d1 d2 d3 d4 d5"],
            "truncate_prompt_tokens": tokens,
            "use_activation": False,
        }
        for path, name, field in (("/v1/rerank", "results", "relevance_score"), ("/score", "data", "score")):
            answer = await api.post(path, body)
            assert answer.status_code == 200, answer.text
            assert answer.json()[name][0][field] == score_of(query, document)


async def test_the_left_side_is_cut_if_that_is_asked_for(open_api: OpenApi) -> None:
    async with open_api(FakeService()) as api:
        body = {"query": "a b", "documents": ["d1 d2 d3 d4"], "truncate_prompt_tokens": 5, "use_activation": False}
        answer = await api.post("/v1/rerank", {**body, "truncation_side": "left"})
        assert answer.json()["results"][0]["relevance_score"] == score_of("a b", "d3 d4")
        # Without a limit nothing is cut, from no side.
        whole = await api.post("/v1/rerank", {**body, "truncate_prompt_tokens": None, "truncation_side": "left"})
        assert whole.json()["results"][0]["relevance_score"] == score_of("a b", "d1 d2 d3 d4")


async def test_what_leaves_no_room_at_all_is_refused(api: Api) -> None:
    answer = await api.post("/v1/rerank", {"query": "a b", "documents": ["a"], "truncate_prompt_tokens": 2})
    assert is_our_error(answer, 400, "invalid_request")
    assert "allow at least 3" in answer.json()["message"]


@pytest.mark.parametrize(
    "policy", [{"truncation": "error"}, {"truncation": "chunk"}, {"passages": {}}, {"max_chunks_per_doc": 2}]
)
async def test_two_policies_for_long_documents_contradict_each_other(api: Api, policy: dict[str, Any]) -> None:
    body = {"query": "q", "documents": ["a"], "truncate_prompt_tokens": 100}
    answer = await api.post("/v2/rerank", {**body, **policy})
    assert is_our_error(answer, 400, "invalid_request")
    assert "leave it out" in answer.json()["message"]
    assert (await api.post("/v2/rerank", {**body, "truncation": "truncate"})).status_code == 200


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank", "/score", "/v3/rerank", "/sglang/v1/rerank"])
@pytest.mark.parametrize("name", ["instruction", "instruct"])
async def test_an_instruction_is_followed_or_refused(open_api: OpenApi, path: str, name: str) -> None:
    body = {"query": "q", "documents": ["a"], name: "be kind"}
    async with open_api(FakeService()) as api:
        refused = await api.post(path, body)
        assert is_our_error(refused, 400, "invalid_request")
        assert "does not take an instruction" in refused.json()["message"]
        assert (await api.post(path, {**body, name: ""})).status_code == 200
    async with open_api(FakeService(scorer=WordScorer(takes_instruction=True))) as api:
        answer = await api.post(path, body)
        assert answer.status_code == 200
        assert "x-ignored-fields" not in answer.headers
