"""Cohere's API, version 2: golden pairs of request and answer."""

import pytest

from tests.api.conftest import Api

_GOLDEN = [
    pytest.param(
        {
            "model": "fake",
            "query": "What is the capital of France?",
            "documents": ["Berlin is in Germany.", "Paris is the capital of France.", "Lyon"],
        },
        {
            "id": "golden-1",
            "results": [
                {"index": 2, "relevance_score": 0.9919520020484924},
                {"index": 1, "relevance_score": 0.8398184776306152},
                {"index": 0, "relevance_score": 0.7820838689804077},
            ],
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": 32},
            },
        },
        id="as the SDK sends it",
    ),
    pytest.param(
        {
            "model": "vendor/fake",
            "query": "q",
            "documents": ["a", "b", "c"],
            "top_n": 2,
            "max_tokens_per_doc": 4096,
            "priority": 0,
        },
        {
            "id": "golden-1",
            "results": [
                {"index": 0, "relevance_score": 0.9998154044151306},
                {"index": 1, "relevance_score": 0.999768853187561},
            ],
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": 9},
            },
        },
        id="alias, top_n, and a field that means nothing here",
    ),
    pytest.param(
        {"query": "q", "documents": ["w " * 600, "b"]},
        {
            "id": "golden-1",
            "results": [
                {"index": 1, "relevance_score": 0.999768853187561},
                {"index": 0, "relevance_score": 0.0009489277726970613},
            ],
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": 515},
                "warnings": ["1 document was longer than the model allows: 90 tokens not read"],
                "truncated_documents": [{"index": 0, "dropped_tokens": 90}],
            },
        },
        id="a document that is cut",
    ),
    pytest.param(
        {"query": "q", "documents": [{"text": "b", "id": 7}], "return_documents": True},
        {
            "id": "golden-1",
            "results": [
                {"index": 0, "relevance_score": 0.999768853187561, "id": 7, "document": {"text": "b", "id": 7}}
            ],
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": 3},
            },
        },
        id="documents as objects, sent back",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
async def test_golden_pairs(api: Api, request_: object, expected: object) -> None:
    answer = await api.post("/v2/rerank", request_, headers={"X-Request-ID": "golden-1"})
    assert answer.status_code == 200
    assert answer.json() == expected


@pytest.mark.parametrize(("documents", "units"), [(1, 1), (50, 1)])
async def test_search_units_are_hundreds_of_documents(api: Api, documents: int, units: int) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"] * documents})
    assert answer.json()["meta"]["billed_units"]["search_units"] == units


async def test_requests_are_counted_under_the_dialect(api: Api) -> None:
    await api.post("/v2/rerank", {"query": "q", "documents": ["a"]})
    assert api.requests_counted(dialect="cohere-v2", status=200) == 1
