"""SGLang's dialect: golden pairs."""

import pytest

from tests.api.conftest import Api, is_our_error

_A, _B = 0.9998154044151306, 0.999768853187561


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [{"score": _A, "document": "a", "index": 1}, {"score": _B, "document": "b", "index": 0}]),
        ({"top_n": 1, "return_documents": False}, [{"score": _A, "index": 1}]),
        ({"instruct": None, "top_n": None, "model": "fake"}, None),
    ],
)
@pytest.mark.parametrize("path", ["/sglang/v1/rerank", "/sglang/rerank"])
async def test_golden_pairs(api: Api, path: str, fields: dict[str, object], expected: object) -> None:
    answer = await api.post(path, {"query": "q", "documents": ["b", "a"], **fields})
    assert answer.status_code == 200, answer.text
    assert expected is None or answer.json() == expected
    assert api.requests_counted(dialect="sglang", status=200) == 1


async def test_an_instruction_is_refused_by_a_model_that_reads_none(api: Api) -> None:
    answer = await api.post("/sglang/v1/rerank", {"query": "q", "documents": ["a"], "instruct": "be kind"})
    assert is_our_error(answer, 400, "invalid_request")
    assert "does not take an instruction" in answer.json()["message"]
