"""What Elasticsearch's `hugging_face` service sends and reads: golden pairs. It refuses unknown fields of results."""

import pytest

from tests.api.conftest import Api

_A, _B = 0.9998154044151306, 0.999768853187561


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [{"index": 1, "relevance_score": _A}, {"index": 0, "relevance_score": _B}]),
        ({"return_documents": True, "top_n": 1}, [{"index": 1, "relevance_score": _A, "text": "a"}]),
        ({"max_chunks_per_doc": 2, "top_n": 1}, [{"index": 1, "relevance_score": _A}]),
    ],
)
async def test_golden_pairs(api: Api, fields: dict[str, object], expected: object) -> None:
    answer = await api.post("/elastic/rerank", {"documents": ["b", "a"], "query": "q", **fields})
    assert answer.status_code == 200, answer.text
    assert answer.json() == expected
    assert api.requests_counted(dialect="elasticsearch", status=200) == 1
