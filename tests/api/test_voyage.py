"""Voyage's dialect: golden pairs, and how it is told from the others on a path that it shares."""

import pytest

from tests.api.conftest import Api, is_our_error

_A, _B, _C = 0.9998154044151306, 0.999768853187561, 0.19777902960777283


def _answer(data: list[dict[str, object]], tokens: int) -> dict[str, object]:
    return {
        "object": "list",
        "id": "golden-1",
        "data": data,
        "model": "fake",
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }


_GOLDEN = [
    pytest.param(
        {"query": "q", "documents": ["c", "a", "b"], "model": "fake", "top_k": None, "truncation": True},
        _answer(
            [
                {"index": 1, "relevance_score": _A},
                {"index": 2, "relevance_score": _B},
                {"index": 0, "relevance_score": _C},
            ],
            9,
        ),
        id="as the SDK sends it",
    ),
    pytest.param(
        {"query": "q", "documents": ["b", {"text": "a", "id": 1}], "top_k": 1, "return_documents": "true"},
        _answer([{"index": 1, "relevance_score": _A, "document": "a"}], 6),
        id="top_k, documents sent back as strings",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/voyage/v1/rerank", "/voyage/rerank"])
async def test_golden_pairs(api: Api, path: str, request_: object, expected: object) -> None:
    answer = await api.post(path, request_, headers={"X-Request-ID": "golden-1"})
    assert answer.status_code == 200
    assert answer.json() == expected
    assert api.requests_counted(dialect="voyage", status=200) == 1


async def test_its_own_path_needs_no_mark_in_the_body(api: Api) -> None:
    answer = await api.post("/voyage/v1/rerank", {"query": "q", "documents": ["a"]})
    assert answer.json()["data"] == [{"index": 0, "relevance_score": _A}]


async def test_truncation_false_refuses_what_does_not_fit(api: Api) -> None:
    body = {"query": "q", "documents": ["a", "w " * 600, "b " * 601], "truncation": False}
    answer = await api.post("/v1/rerank", body)
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"].startswith("documents[1] and 1 more cannot be read whole: 90 tokens")
