"""What is said of texts that are too long names the request's own fields, and the limit that was met."""

from typing import Any

import pytest

from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService

_LONG = "w " * 600


@pytest.mark.parametrize(
    ("path", "body", "refused", "hint"),
    [
        ("/v2/rerank", {"documents": ["a", _LONG], "truncation": "error"}, "documents[1]", 'truncation: "truncate"'),
        ("/voyage/rerank", {"documents": ["a", _LONG], "truncation": False}, "documents[1]", "truncation: true"),
        ("/ranking", {"passages": [{"text": _LONG}], "truncate": "NONE"}, "passages[0]", 'truncate: "END"'),
        (
            "/pinecone/rerank",
            {"documents": [_LONG], "parameters": {"truncate": "NONE"}},
            "documents[0]",
            'parameters: {"truncate": "END"}',
        ),
    ],
)
async def test_a_refusal_names_the_field_and_what_allows_a_cut(
    api: Api, path: str, body: dict[str, Any], refused: str, hint: str
) -> None:
    answer = await api.post(path, {"query": "q", **body})
    assert is_our_error(answer, 400, "invalid_request"), answer.text
    assert answer.json()["message"].startswith(f"{refused} cannot be read whole: ")
    assert answer.json()["message"].endswith(f"; shorten it, or allow truncation ({hint})")


@pytest.mark.parametrize(
    ("path", "body", "way_out"),
    [
        ("/v2/rerank", {"documents": ["a"]}, ', or allow truncation (truncation: "truncate")'),
        ("/rerank", {"texts": ["a"]}, ", or allow truncation (truncate: true)"),
        ("/ranking", {"passages": [{"text": "a"}]}, ', or allow truncation (truncate: "END")'),
        ("/v1/reranking", {"input": ["a"]}, ""),
    ],
)
async def test_a_query_that_is_too_long_is_told_the_way_out_that_the_dialect_has(
    open_api: OpenApi, path: str, body: dict[str, Any], way_out: str
) -> None:
    async with open_api(FakeService()) as api:
        answer = await api.post(path, {"query": _LONG, **body})
    assert is_our_error(answer, 400, "invalid_request"), answer.text
    assert answer.json()["message"] == f"the query leaves no room for a document: shorten the query{way_out}"


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, "the model"),
        ({"max_tokens_per_doc": 5}, "the model or max_tokens_per_doc"),
        ({"max_chunks_per_doc": 1}, "max_chunks_per_doc (or passages.max_per_doc)"),
        ({"passages": {"tokens": 32, "max_per_doc": 2}}, "max_chunks_per_doc (or passages.max_per_doc)"),
    ],
)
async def test_a_warning_names_the_limit(api: Api, fields: dict[str, Any], limit: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": [_LONG, "a"], **fields})
    (warning,) = answer.json()["meta"]["warnings"]
    assert warning.startswith(f"1 document was longer than {limit} allows: ")
