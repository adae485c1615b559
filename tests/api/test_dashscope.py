"""DashScope's two dialects: golden pairs."""

import pytest

from tests.api.conftest import Api, is_our_error

_A, _B = 0.9998154044151306, 0.999768853187561
_PATH = "/api/v1/services/rerank/text-rerank/text-rerank"


@pytest.mark.parametrize("documents", [["b", "a"], [{"text": "b"}, {"text": "a"}]])
async def test_a_golden_pair(api: Api, documents: list[object]) -> None:
    body = {
        "model": "fake",
        "input": {"query": "q", "documents": documents},
        "parameters": {"return_documents": True, "top_n": 2},
    }
    answer = await api.post(_PATH, body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "output": {
            "results": [
                {"index": 1, "relevance_score": _A, "document": {"text": "a"}},
                {"index": 0, "relevance_score": _B, "document": {"text": "b"}},
            ]
        },
        "usage": {"total_tokens": 6},
        "request_id": answer.headers["x-request-id"],
    }
    assert api.requests_counted(dialect="dashscope", status=200) == 1


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {}}])
async def test_parameters_may_be_missing(api: Api, parameters: dict[str, object]) -> None:
    answer = await api.post(_PATH, {"model": "fake", "input": {"query": "q", "documents": ["a"]}, **parameters})
    assert answer.json()["output"] == {"results": [{"index": 0, "relevance_score": _A}]}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "fake", "input": {"query": "q"}}, 400, "input.documents is missing"),
        ({"model": "fake", "input": {"query": "q", "documents": [5]}}, 400, "input.documents[0]"),
        ({"model": "fake", "input": {"query": "q", "documents": ["a"] * 51}}, 413, "at most 50 documents per request"),
        (
            {"input": {"query": "q", "documents": ["a"]}, "parameters": {"instruct": "be kind"}},
            400,
            "does not take an instruction",
        ),
    ],
)
async def test_what_is_wrong_is_named(api: Api, body: object, status: int, message: str) -> None:
    answer = await api.post(_PATH, body)
    assert is_our_error(answer, status, "request_too_large" if status == 413 else "invalid_request"), answer.text
    assert message in answer.json()["message"]


async def test_the_compatible_path_speaks_as_jina_does(api: Api) -> None:
    body = {"model": "fake", "query": "q", "documents": ["b", "a"], "top_n": 1, "return_documents": True}
    answer = (await api.post("/compatible-api/v1/reranks", body)).json()
    assert answer["results"] == [{"index": 1, "relevance_score": _A, "document": {"text": "a"}}]
    assert answer["usage"]["total_tokens"] == 6
