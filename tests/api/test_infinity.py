"""Infinity's dialect: golden pairs on the shared path and on its own."""

import pytest

from tests.api.conftest import Api
from tests.fakes import score_of

_A, _B = 0.9998154044151306, 0.999768853187561


def _answer(results: list[dict[str, object]], tokens: int) -> dict[str, object]:
    return {
        "object": "rerank",
        "id": "golden-1",
        "model": "fake",
        "results": results,
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }


_GOLDEN = [
    pytest.param(
        {"query": "q", "documents": ["b", "a"], "raw_scores": False, "return_documents": False, "model": "fake"},
        _answer([{"index": 1, "relevance_score": _A}, {"index": 0, "relevance_score": _B}], 6),
        id="as the SDK sends it",
    ),
    pytest.param(
        {"query": "q", "documents": ["b", "a"], "raw_scores": True, "return_documents": True, "top_n": 1},
        _answer([{"index": 1, "relevance_score": score_of("q", "a"), "document": "a"}], 6),
        id="raw scores, documents sent back as strings",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/infinity/rerank", "/infinity/v1/rerank"])
async def test_golden_pairs(api: Api, path: str, request_: object, expected: object) -> None:
    answer = await api.post(path, request_, headers={"X-Request-ID": "golden-1"})
    assert answer.status_code == 200
    assert answer.json() == expected
    assert api.requests_counted(dialect="infinity", status=200) == 1


async def test_no_model_in_the_words_of_its_client_is_the_default_one(api: Api) -> None:
    body = {"query": "q", "documents": ["a"], "raw_scores": False, "model": "default/not-specified"}
    assert (await api.post("/rerank", body)).json()["model"] == "fake"


async def test_its_own_path_needs_no_mark_in_the_body(api: Api) -> None:
    answer = await api.post("/infinity/rerank", {"query": "q", "documents": ["a"], "return_documents": True})
    assert answer.json()["results"] == [{"index": 0, "relevance_score": _A, "document": "a"}]
