"""Which dialect a body on a shared path belongs to, HEAD, and what is the same in all of them."""

from typing import Any

import pytest

from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import SHARED_PATHS, Dialect
from tests.api.conftest import Api, address_of, is_our_error

_PINECONE = {"X-Pinecone-Api-Version": "2025-10"}
_DOCUMENTS = ["a", "b"]


@pytest.mark.parametrize("path", SHARED_PATHS)
@pytest.mark.parametrize(
    ("fields", "headers", "dialect"),
    [
        ({"texts": _DOCUMENTS}, {}, "tei"),
        ({"texts": _DOCUMENTS, "raw_scores": True, "top_k": 1}, {}, "tei"),
        ({"passages": [{"text": "a"}]}, {}, "nim"),
        ({"passages": [{"text": "a"}], "top_k": 1}, {}, "nim"),
        ({"input": _DOCUMENTS}, {}, "mixedbread"),
        ({"input": _DOCUMENTS, "top_k": 1}, {}, "mixedbread"),
        ({"documents": _DOCUMENTS}, _PINECONE, "pinecone"),
        ({"documents": _DOCUMENTS, "top_k": 1}, _PINECONE, "pinecone"),
        ({"documents": _DOCUMENTS, "top_k": None}, {}, "voyage"),
        ({"documents": _DOCUMENTS, "truncation": True, "raw_scores": False}, {}, "voyage"),
        ({"documents": _DOCUMENTS, "raw_scores": None}, {}, "infinity"),
        ({"documents": _DOCUMENTS}, {}, "jina"),
        ({"documents": _DOCUMENTS, "top_n": 1, "return_documents": True}, {}, "jina"),
        ({"documents": [{"text": "a"}], "rank_fields": ["text"]}, {}, "jina"),
    ],
)
async def test_the_body_says_whose_it_is(
    api: Api, path: str, fields: dict[str, Any], headers: dict[str, str], dialect: str
) -> None:
    query: object = {"text": "q"} if dialect == "nim" else "q"
    answer = await api.post(path, {"query": query, **fields}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert api.requests_counted(dialect=dialect, status=200) == 1


_OWN_PATHS = [
    pytest.param(address_of(path), dialect, id=path)
    for dialect in DIALECTS
    for path in dialect.paths
    if path not in SHARED_PATHS
]


@pytest.mark.parametrize(("path", "home"), _OWN_PATHS)
@pytest.mark.parametrize(
    ("fields", "dialect"),
    [
        ({"query": "q", "documents": _DOCUMENTS}, "jina"),
        ({"query": "q", "documents": _DOCUMENTS, "top_n": 1, "return_documents": True}, "jina"),
        ({"query": "q", "documents": _DOCUMENTS, "top_k": 1}, "voyage"),
        ({"query": "q", "documents": _DOCUMENTS, "raw_scores": True}, "infinity"),
        ({"query": "q", "texts": _DOCUMENTS}, "tei"),
        ({"query": {"text": "q"}, "passages": [{"text": "a"}]}, "nim"),
        ({"query": "q", "input": _DOCUMENTS}, "mixedbread"),
    ],
)
async def test_a_path_of_one_dialect_takes_the_bodies_of_the_others_too(
    api: Api, path: str, home: Dialect, fields: dict[str, Any], dialect: str
) -> None:
    """llama.cpp's `/reranking` takes `documents`, Mixedbread's `input`."""
    expected = home.name if home.has_documents(fields) else dialect
    answer = await api.post(path, fields)
    assert answer.status_code == 200, answer.text
    assert api.requests_counted(dialect=expected, status=200) == 1


@pytest.mark.parametrize(
    ("path", "field"),
    [("/reranking", "input"), ("/ranking", "passages"), ("/v2/rerank", "documents"), ("/score", "text_2")],
)
async def test_a_body_of_no_dialect_is_rejected_in_the_words_of_its_path(api: Api, path: str, field: str) -> None:
    answer = await api.post(path, {"query": "q"})
    assert is_our_error(answer, 400, "invalid_request")
    assert f"{field} is missing" in answer.json()["message"]


_WITH_TOP_N = [dialect for dialect in DIALECTS if not dialect.body.model_fields.keys().isdisjoint({"top_n", "top_k"})]


@pytest.mark.parametrize("top_n", [0, -1, None, "-1", 10_000, 2**31 - 1, 2**63 - 1, 2**64, 10**40, 1e300])
@pytest.mark.parametrize("dialect", _WITH_TOP_N, ids=lambda dialect: dialect.name)
async def test_what_clients_send_for_all_results_gives_all_of_them(api: Api, dialect: Any, top_n: object) -> None:
    fields = {**dialect.example, "model": "fake"}
    fields.pop("topN", None)
    name = next(name for name in ("top_n", "top_k") if name in dialect.body.model_fields)
    answer = await api.post(address_of(dialect.paths[-1]), {**fields, name: top_n}, headers=_headers(dialect))
    assert answer.status_code == 200, answer.text
    results = answer.json() if isinstance(answer.json(), list) else _results(answer.json())
    assert len(results) == 2


def _headers(dialect: Any) -> dict[str, str]:
    return _PINECONE if dialect.name == "pinecone" else {}


def _results(answer: dict[str, Any]) -> list[Any]:
    return next(answer[name] for name in ("results", "data", "rankings", "records") if name in answer)


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({}, None),
        ({"top_k": 1, "truncation": None}, "top_k"),
        ({"topn": 1, "max_token": 3}, "topn, max_token"),
        ({"passages": {"token": 64, "tokens": 32}}, "passages.token"),
        ({"x": 1, "passages": {"max_passages": 3, "no tes": 1}}, "x, passages.max_passages"),
        ({"windows": {"window": 4, "strides": 2}}, "windows.strides, windows"),
        ({"windows": {"window": 4}}, "windows"),
        ({"windows": None, "passages": None}, None),
        ({"on_deadline": "partial"}, None),
        ({"truncation": "truncate", "passages": {"max_per_doc": 2}}, "passages"),
        ({"truncation": "extract", "passages": {"max_per_doc": 2}}, "passages"),
        ({"truncation": "chunk", "passages": {"max_per_doc": 2}}, None),
        ({"passages": {"max_per_doc": 2}}, None),
        ({"documents": [{"text": "a", "mine": 1}]}, None),
        ({"a b": 1, "größe": 2, "x" * 65: 3, "line\nfeed": 4, "": 5, "fine": 6}, "fine"),
        ({f"f{number}": 1 for number in range(99)}, ", ".join(f"f{number}" for number in range(10))),
    ],
)
async def test_fields_that_mean_nothing_are_named(api: Api, fields: dict[str, Any], ignored: str | None) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], **fields})
    assert answer.status_code == 200
    assert answer.headers.get("x-ignored-fields") == ignored


@pytest.mark.parametrize("name", ["text_1", "query", "queries", "data_1"])
async def test_every_name_of_a_field_is_known(api: Api, name: str) -> None:
    answer = await api.post("/score", {name: "q", "text_2": "a"})
    assert answer.status_code == 200
    assert "x-ignored-fields" not in answer.headers


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/models", "/v1/models/fake", "/info"])
async def test_head_is_answered_as_get_is(api: Api, path: str) -> None:
    assert (await api.client.head(path)).status_code == (await api.client.get(path)).status_code


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("wrong", [None, 5, {"a": 1}, [None], "", [["a"]], {}])
async def test_no_value_of_any_field_of_any_dialect_is_a_bug_of_ours(api: Api, dialect: Any, wrong: object) -> None:
    path = address_of(dialect.paths[-1])
    headers = _PINECONE if dialect.name == "pinecone" else {}
    for name in dialect.example.keys() | dialect.body.model_fields.keys():
        answer = await api.post(path, {**dialect.example, "model": None, name: wrong}, headers=headers)
        if answer.status_code != 200:
            code = {400: "invalid_request", 404: "model_not_found"}[answer.status_code]
            assert is_our_error(answer, answer.status_code, code), (name, answer.text)


@pytest.mark.parametrize("priority", [0, 1, 999, None, "5"])
@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank"])
async def test_a_priority_is_taken(api: Api, path: str, priority: object) -> None:
    answer = await api.post(path, {"query": "q", "documents": ["a"], "priority": priority})
    assert answer.status_code == 200


@pytest.mark.parametrize("priority", [-1, 1000, "first", 0.5])
async def test_a_priority_that_there_is_not_is_refused(api: Api, priority: object) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], "priority": priority})
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"].startswith("priority must be ")


_EQUAL: dict[str, Any] = {
    "tei": {"texts": ["a"] * 5},
    "nim": {"passages": [{"text": "a"}] * 5},
    "mixedbread": {"input": ["a"] * 5},
    "vllm-score": {"text_2": ["a"] * 5},
    "dashscope": {"input": {"query": "q", "documents": ["a"] * 5}, "parameters": {}},
    "bedrock": {
        "sources": [{"inlineDocumentSource": {"textDocument": {"text": "a"}}}] * 5,
        "rerankingConfiguration": {},
    },
    "vertex": {"records": [{"id": str(index), "content": "a"} for index in range(5)], "topN": 0},
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_equal_documents_are_in_the_order_of_the_request(api: Api, dialect: Any) -> None:
    if dialect.name in ("tei-predict", "weaviate"):
        pytest.skip("its results are always in the order of the request")
    wishes = {"model": None, "top_n": None, "top_k": None, "return_documents": False}
    body = {**dialect.example, **wishes, **_EQUAL.get(dialect.name, {"documents": ["a"] * 5})}
    headers = _PINECONE if dialect.name == "pinecone" else {}
    answer = (await api.post(address_of(dialect.paths[-1]), body, headers=headers)).json()
    answer = answer.get("output", answer) if isinstance(answer, dict) else answer
    results = (
        answer if isinstance(answer, list) else next(value for value in answer.values() if isinstance(value, list))
    )
    assert [int(result["id" if dialect.name == "vertex" else "index"]) for result in results] == [0, 1, 2, 3, 4]
