"""`confidence` on /v2/rerank, and answers that abstain."""

from typing import Any

import numpy as np
import pytest

from rerankd.domain import ConfidenceMethod, ConfidencePlan
from rerankd.scorers.calibration import ConfidenceEstimator, FittedConfidence
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of

_DOCUMENTS = ["one text", "another text", "a third text"]
_FITTED = FittedConfidence(measure="AP", weights=(0.0, 0.1), bias=0.5, threshold=100)


async def _meta(api: Api, confidence: Any, path: str = "/v2/rerank", **fields: Any) -> Any:
    body = {"query": "q", "documents": [*_DOCUMENTS, " "], "confidence": confidence, **fields}
    answer = await api.post(path, body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == fields.get("top_n", 4)
    return answer.json()["meta"]


def _relevance() -> list[float]:
    relevance: list[float] = sigmoid(np.array([score_of("q", text) for text in _DOCUMENTS], dtype=np.float32)).tolist()
    return relevance


def _abstained(api: Api) -> float:
    return api.observer.registry.get_sample_value("rerank_abstained_requests_total", {"model": "fake"}) or 0.0


async def test_the_answer_says_how_sure_it_is_and_keeps_its_results(api: Api) -> None:
    best = max(_relevance())
    meta = await _meta(api, {"method": "max", "threshold": best + 0.01}, top_n=1)
    assert (meta["confidence"], meta["abstained"]) == (pytest.approx(best), True)
    assert _abstained(api) == 1
    assert (await _meta(api, {"method": "max", "threshold": best - 0.01}))["abstained"] is False
    assert (await _meta(api, {"method": "margin"}))["abstained"] is False
    assert _abstained(api) == 1


@pytest.mark.parametrize("confidence", [None, {}, {"method": "none", "threshold": 0.5}])
async def test_without_a_method_nothing_is_said(api: Api, confidence: Any) -> None:
    assert {"confidence", "abstained"}.isdisjoint(await _meta(api, confidence))


async def test_a_fitted_confidence_is_in_every_answer(open_api: OpenApi) -> None:
    estimator = ConfidenceEstimator(ConfidencePlan(), _FITTED)
    async with open_api(FakeService(activation=sigmoid, confidence=estimator)) as api:
        best = max(score_of("q", text) for text in _DOCUMENTS)
        for path in ("/v2/rerank", "/v1/rerank"):
            meta = await _meta(api, None, path)
            assert (meta["confidence"], meta["abstained"]) == (pytest.approx(0.5 + 0.1 * best), True)
        assert "confidence" not in await _meta(api, {"method": "none"})


async def test_the_operator_s_method_is_the_default(open_api: OpenApi) -> None:
    plan = ConfidencePlan(method=ConfidenceMethod.DEVIATION, threshold=2.0)
    async with open_api(FakeService(activation=sigmoid, confidence=ConfidenceEstimator(plan, None))) as api:
        assert (await _meta(api, None))["confidence"] == pytest.approx(float(np.std(_relevance())), abs=1e-6)


@pytest.mark.parametrize(
    ("confidence", "complaint"),
    [
        ({"method": "fitted"}, "nothing is fitted for this model"),
        ({"threshold": 0.5}, "confidence.threshold: this model has no method of its own; add method"),
        ({"method": "luck"}, "confidence.method must be one of"),
        ({"threshold": "NaN"}, "confidence.threshold must be a finite number"),
    ],
)
async def test_what_cannot_be_is_refused(api: Api, confidence: Any, complaint: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, "confidence": confidence})
    assert is_our_error(answer, 400, "invalid_request")
    assert complaint in answer.json()["message"]


async def test_a_model_that_only_orders_has_none(open_api: OpenApi) -> None:
    async with open_api(FakeService(activation=sigmoid, confidence=None)) as api:
        assert "confidence" not in await _meta(api, {"method": "max"})
