"""vLLM's score dialect: one text against many, pairs, and scores in the order of the request."""

from typing import Any

import numpy as np
import pytest

from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of


def _relevance(query: str, document: str) -> float:
    return float(sigmoid(np.array([score_of(query, document)], dtype=np.float32))[0])


def _answer(pairs: list[tuple[str, str]], tokens: int) -> dict[str, Any]:
    return {
        "id": "golden-1",
        "object": "list",
        "model": "fake",
        "data": [{"index": index, "object": "score", "score": _relevance(*pair)} for index, pair in enumerate(pairs)],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }


_GOLDEN = [
    pytest.param(
        {"model": "fake", "text_1": "q", "text_2": ["c", "a", "b"]},
        _answer([("q", "c"), ("q", "a"), ("q", "b")], 9),
        id="one against many, not sorted",
    ),
    pytest.param({"text_1": "q", "text_2": "a"}, _answer([("q", "a")], 3), id="one against one"),
    pytest.param(
        {"text_1": ["q", "r", "q"], "text_2": ["a", "a", "b"]},
        _answer([("q", "a"), ("r", "a"), ("q", "b")], 9),
        id="pairs",
    ),
    pytest.param(
        {"query": ["q"], "documents": ["c", "a"], "model": None, "priority": None, "use_activation": None},
        _answer([("q", "c"), ("q", "a")], 6),
        id="the newer names, and nulls",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), _GOLDEN)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_golden_pairs(api: Api, path: str, request_: object, expected: object) -> None:
    answer = await api.post(path, request_, headers={"X-Request-ID": "golden-1"})
    assert answer.status_code == 200
    assert answer.json() == expected
    assert api.requests_counted(dialect="vllm-score", status=200) == 1


@pytest.mark.parametrize("name", ["use_activation", "activation"])
async def test_raw_scores(api: Api, name: str) -> None:
    answer = await api.post("/score", {"text_1": "q", "text_2": ["c", "a"], name: False})
    assert [entry["score"] for entry in answer.json()["data"]] == [score_of("q", "c"), score_of("q", "a")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text_1": ["q", "r"], "text_2": ["a"]}, "2 texts cannot be paired with 1"),
        ({"text_1": "q", "text_2": []}, "no documents; send at least one"),
        ({"text_1": [], "text_2": []}, "no documents; send at least one"),
        ({"text_1": [], "text_2": ["a"]}, "0 texts cannot be paired"),
        ({"text_1": "q"}, "text_2 is missing"),
        ({"text_1": " ", "text_2": ["a"]}, "query is empty"),
        ({"text_1": "q", "text_2": [None]}, "text_2"),
        ({"text_1": "q", "text_2": [{"image_url": "http://x/y"}]}, "text_2[0].image_url is the address"),
        ({"text_1": {"image": "http://x/y"}, "items": ["a"]}, "text_1[0].image is the address"),
        ({"queries": "q", "documents": [{"image": "http://x/y"}]}, "documents[0].image is the address"),
    ],
)
async def test_what_cannot_be_paired_is_refused(api: Api, body: dict[str, Any], message: str) -> None:
    answer = await api.post("/score", body)
    assert is_our_error(answer, 400, "invalid_request")
    assert message in answer.json()["message"]


async def test_a_pair_that_fails_fails_the_call_and_the_service_goes_on(api: Api) -> None:
    answer = await api.post("/score", {"text_1": ["q", "r"], "text_2": ["poison", "a"]})
    assert is_our_error(answer, 500, "scoring_failed")
    assert (await api.post("/score", {"text_1": "q", "text_2": "a"})).status_code == 200


async def test_all_pairs_together_are_limited(open_api: OpenApi) -> None:
    async with open_api(FakeService(max_documents=3)) as api:
        queries = [str(number) for number in range(4)]
        answer = await api.post("/score", {"text_1": queries, "text_2": ["a"] * 4})
        assert is_our_error(answer, 413, "request_too_large")
        assert (await api.post("/score", {"text_1": queries[:3], "text_2": ["a"] * 3})).status_code == 200
