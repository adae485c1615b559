"""Mixedbread's dialect: golden pairs."""

import pytest

from tests.api.conftest import Api, is_our_error

_A, _B = 0.9998154044151306, 0.999768853187561


def _answer(data: list[dict[str, object]], tokens: int, *, return_input: bool) -> dict[str, object]:
    return {
        "object": "list",
        "id": "golden-1",
        "model": "fake",
        "data": [{"object": "rank_result", **entry} for entry in data],
        "top_k": len(data),
        "return_input": return_input,
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }


_GOLDEN = [
    pytest.param(
        {"model": "fake", "query": "q", "input": ["b", "a"]},
        _answer([{"index": 1, "score": _A}, {"index": 0, "score": _B}], 6, return_input=False),
        id="least of all",
    ),
    pytest.param(
        {
            "query": "q",
            "input": ["b", {"text": "a", "n": 1}],
            "top_k": 1,
            "return_input": True,
            "rank_fields": ["text"],
        },
        _answer([{"index": 1, "score": _A, "input": {"text": "a", "n": 1}}], 6, return_input=True),
        id="input sent back as it came",
    ),
    pytest.param(
        {"query": "q", "input": ["a"], "top_k": None, "return_input": None, "rank_fields": None, "model": None},
        _answer([{"index": 0, "score": _A}], 3, return_input=False),
        id="explicit nulls",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
@pytest.mark.parametrize("path", ["/v1/reranking", "/reranking", "/rerank", "/v1/rerank"])
async def test_golden_pairs(api: Api, path: str, request_: object, expected: object) -> None:
    answer = await api.post(path, request_, headers={"X-Request-ID": "golden-1"})
    assert answer.status_code == 200
    assert answer.json() == expected
    assert api.requests_counted(dialect="mixedbread", status=200) == 1


async def test_an_input_that_is_wrong_is_named_as_the_client_calls_it(api: Api) -> None:
    answer = await api.post("/v1/reranking", {"query": "q", "input": ["a", None]})
    assert is_our_error(answer, 400, "invalid_request")
    assert answer.json()["message"].startswith("input[1] is null")
