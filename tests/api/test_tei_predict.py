"""Prediction of text-embeddings-inference: golden pairs, one pair and many."""

import pytest

from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of

_A, _B, _C = 0.9998154044151306, 0.999768853187561, 0.19777902960777283


def _label(score: float) -> list[dict[str, object]]:
    return [{"score": score, "label": "LABEL_0"}]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"inputs": [["q", "c"], ["q", "a"], ["q", "b"]]}, [_label(_C), _label(_A), _label(_B)]),
        ({"inputs": ["q", "a"]}, _label(_A)),
        ({"inputs": [["q", "a"]], "truncate": None, "raw_scores": "false"}, [_label(_A)]),
        (
            {"inputs": [["a", "b"], ["q", "a"], ["a", ""]], "raw_scores": True, "truncate": True, "model": "fake"},
            [_label(score_of("a", "b")), _label(score_of("q", "a")), _label(-16.0)],
        ),
    ],
)
async def test_golden_pairs(api: Api, request_: object, expected: object) -> None:
    answer = await api.post("/predict", request_)
    assert answer.status_code == 200, answer.text
    assert answer.json() == expected
    assert api.requests_counted(dialect="tei-predict", status=200) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("q", "inputs: no pairs"),
        ([], "inputs: no pairs"),
        (["q"], "inputs: entry 0 is not a pair"),
        (["q", "a", "b"], "inputs: entry 0 is not a pair"),
        ([["q", "a"], ["q"]], "inputs: entry 1 is not a pair"),
        ([["q", "a"], "b"], "inputs: entry 1 is not a pair"),
        ([["q", 5]], "inputs: entry 0 is not a pair"),
    ],
)
async def test_what_is_no_pair_is_named(api: Api, inputs: object, message: str) -> None:
    answer = await api.post("/predict", {"inputs": inputs})
    assert is_our_error(answer, 400, "invalid_request")
    assert message in answer.json()["message"]


async def test_a_long_query_is_cut_only_if_that_is_asked_for(open_api: OpenApi) -> None:
    async with open_api(FakeService()) as api:
        body = {"inputs": ["w " * 600, "a"]}
        assert is_our_error(await api.post("/predict", body), 400, "invalid_request")
        assert (await api.post("/predict", {**body, "truncate": True})).status_code == 200
