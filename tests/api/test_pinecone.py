"""Pinecone's dialect: golden pairs, and the header that its clients are known by."""

import pytest

from tests.api.conftest import Api, is_our_error

_A, _B = 0.9998154044151306, 0.999768853187561
_HEADERS = {"X-Pinecone-Api-Version": "2025-10", "X-Request-ID": "golden-1"}


def _answer(data: list[dict[str, object]], tokens: int) -> dict[str, object]:
    usage = {"rerank_units": 1, "prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return {"id": "golden-1", "model": "fake", "data": data, "usage": usage}


_GOLDEN = [
    pytest.param(
        {"query": "q", "documents": [{"t": "b"}, {"t": "a", "text": "no"}], "rank_fields": ["t"], "top_n": 1},
        _answer([{"index": 1, "score": _A, "document": {"t": "a", "text": "no"}}], 6),
        id="one field, read as it is",
    ),
    pytest.param(
        {
            "model": "fake",
            "query": "q",
            "documents": [{"id": "1", "text": "b"}, {"id": "2", "text": "a"}],
            "rank_fields": ["text"],
            "return_documents": True,
            "top_n": 1,
            "parameters": {"truncate": "END"},
        },
        _answer([{"index": 1, "score": _A, "document": {"id": "2", "text": "a"}}], 6),
        id="as the SDK sends it",
    ),
    pytest.param(
        {"query": "q", "documents": ["b", "a"], "return_documents": False, "parameters": None, "top_n": None},
        _answer([{"index": 1, "score": _A}, {"index": 0, "score": _B}], 6),
        id="strings, not sent back",
    ),
    pytest.param(
        {"query": "q", "documents": ["a"], "parameters": {"truncate": None, "other": 1}},
        _answer([{"index": 0, "score": _A, "document": {"text": "a"}}], 3),
        id="sent back unless told otherwise",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/pinecone/rerank"])
async def test_golden_pairs(api: Api, path: str, request_: object, expected: object) -> None:
    answer = await api.post(path, request_, headers=_HEADERS)
    assert answer.status_code == 200
    assert answer.json() == expected
    assert api.requests_counted(dialect="pinecone", status=200) == 1


async def test_a_field_that_a_document_lacks_is_named(api: Api) -> None:
    body = {"query": "q", "documents": [{"t": "a"}, {"u": "b"}], "rank_fields": ["t"]}
    answer = await api.post("/rerank", body, headers=_HEADERS)
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"].startswith("documents[1] has none of the fields to read: 't'; add one")


@pytest.mark.parametrize(("truncate", "status"), [("END", 200), ("NONE", 400), ("START", 400)])
async def test_truncate(api: Api, truncate: str, status: int) -> None:
    body = {"query": "q", "documents": ["w " * 600], "parameters": {"truncate": truncate}}
    answer = await api.post("/rerank", body, headers=_HEADERS)
    assert answer.status_code == status
    assert status == 200 or is_our_error(answer, 400, "invalid_request")


async def test_units_are_hundreds_of_documents(api: Api) -> None:
    answer = await api.post("/rerank", {"query": "q", "documents": ["a"] * 50}, headers=_HEADERS)
    assert answer.json()["usage"]["rerank_units"] == 1
