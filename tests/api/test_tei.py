"""The dialect of text-embeddings-inference: golden pairs, and what its flags mean."""

from typing import Any

import pytest

from tests.api.conftest import Api, is_our_error
from tests.fakes import score_of

_A, _B, _C = 0.9998154044151306, 0.999768853187561, 0.19777902960777283

_GOLDEN = [
    pytest.param(
        {"query": "q", "texts": ["c", "a", "b"]},
        [{"index": 1, "score": _A}, {"index": 2, "score": _B}, {"index": 0, "score": _C}],
        id="least of all",
    ),
    pytest.param(
        {"query": "q", "texts": ["c", "", "a"], "return_text": True, "raw_scores": True},
        [
            {"index": 2, "score": score_of("q", "a"), "text": "a"},
            {"index": 0, "score": score_of("q", "c"), "text": "c"},
            {"index": 1, "score": -16.0, "text": ""},
        ],
        id="raw scores and texts, blank last",
    ),
    pytest.param(
        {
            "query": "q",
            "texts": ["a"],
            "raw_scores": None,
            "return_text": "false",
            "truncate": None,
            "truncation_direction": None,
            "model": None,
        },
        [{"index": 0, "score": _A}],
        id="explicit nulls",
    ),
    pytest.param(
        {"query": "q", "texts": ["a", "b"], "truncate": True, "truncation_direction": "Right", "top_n": 1},
        [{"index": 0, "score": _A}],
        id="truncation as TEI writes it, and a top_n that TEI does not know",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
async def test_golden_pairs(api: Api, path: str, request_: object, expected: object) -> None:
    answer = await api.post(path, request_)
    assert answer.status_code == 200
    assert answer.json() == expected
    assert api.requests_counted(dialect="tei", status=200) == 1


@pytest.mark.parametrize("truncate", [True, False, "false", None])
@pytest.mark.parametrize("side", ["Left", "Right", None])
async def test_no_call_fails_because_a_text_is_long(api: Api, truncate: object, side: str | None) -> None:
    body = {"query": "q", "texts": ["a", "w " * 600], "truncate": truncate, "truncation_direction": side}
    answer = await api.post("/rerank", body)
    assert answer.status_code == 200
    assert [rank["index"] for rank in answer.json()] == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": None}, "texts must be a list"),
        ({"texts": ["a", 5]}, "texts[1] must be a string"),
        ({"texts": []}, "no documents"),
        ({"truncation_direction": "up"}, "truncation_direction must be one of 'left' or 'right'"),
    ],
)
async def test_a_field_that_is_wrong_is_named(api: Api, change: dict[str, Any], message: str) -> None:
    answer = await api.post("/rerank", {"query": "q", "texts": ["a"], **change})
    assert is_our_error(answer, 400, "invalid_request")
    assert message in answer.json()["message"]
