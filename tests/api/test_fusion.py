"""`fusion` on /v2/rerank: the first stage's scores in the request, the order and its reasons in the answer."""

from typing import Any

import numpy as np
import pytest

from rerankd.cache.memory import MemoryCache
from rerankd.domain import FusionMode, FusionPlan
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of

_DOCUMENTS = ["one text", "another text", "a third text", "and a fourth"]
_SCORES = [4.0, 1.0, 3.0, 2.0]


async def _answer(api: Api, fusion: Any, **fields: Any) -> Any:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, "fusion": fusion, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("mode", ["z-score", "min-max", "rrf"])
async def test_the_order_is_that_of_both_scores(api: Api, mode: str) -> None:
    answer = await _answer(api, {"mode": mode, "weight": 0.25, "scores": _SCORES}, explain=True)
    values = [score_of("q", document) for document in _DOCUMENTS]
    plan = FusionPlan(mode=FusionMode(mode), weight=0.25)
    relevance = plan.relevance(plan.fuse(_SCORES, values))
    order = np.argsort(-relevance).tolist()
    assert [result["index"] for result in answer["results"]] == order
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(relevance[order].tolist())
    explained = [result["explain"] for result in answer["results"]]
    assert [one["score"] for one in explained] == [values[index] for index in order]
    own = sigmoid(np.array(values, dtype=np.float32))[order].tolist()
    assert [one["relevance"] for one in explained] == pytest.approx(own)
    assert answer["meta"]["fusion"] == {"mode": mode, "weight": 0.25}
    counted = api.observer.registry.get_sample_value("rerank_fused_requests_total", {"model": "fake", "mode": mode})
    assert counted == 1


async def test_without_scores_the_documents_come_in_the_first_stage_s_order(api: Api) -> None:
    answer = await _answer(api, {"weight": 1})
    assert [result["index"] for result in answer["results"]] == [0, 1, 2, 3]
    assert answer["meta"]["fusion"]["mode"] == "z-score"


async def test_min_score_is_about_the_model_s_own_relevance(api: Api) -> None:
    own = sigmoid(np.array([score_of("q", document) for document in _DOCUMENTS], dtype=np.float32)).tolist()
    least = sorted(own)[2]
    answer = await _answer(api, {"weight": 1}, min_score=least)
    assert [result["index"] for result in answer["results"]] == [i for i in range(4) if own[i] >= least]


async def test_top_n_and_spans_are_of_the_fused_order(api: Api) -> None:
    wishes = {"relevant_spans": {"mode": "enabled", "threshold": -1}, "top_n": 1}
    (result,) = (await _answer(api, {"weight": 1, "scores": [0, 0, 9, 0]}, **wishes))["results"]
    assert result["index"] == 2
    assert result["relevant_spans"]


async def test_cached_scores_serve_every_fusion(open_api: OpenApi) -> None:
    fake = FakeService(activation=sigmoid, cache=MemoryCache(max_entries=100))
    async with open_api(fake) as api:
        await _answer(api, None)
        passes = len(fake.engine.batches)
        for fusion in ({"weight": 0.1, "scores": _SCORES}, {"mode": "rrf"}, {"weight": 1}):
            explained = [result["explain"] for result in (await _answer(api, fusion, explain=True))["results"]]
            assert all(one["cached"] for one in explained)
        assert len(fake.engine.batches) == passes


async def test_the_registry_s_plan_is_the_default(open_api: OpenApi) -> None:
    plan = FusionPlan(mode=FusionMode.RRF, weight=1)
    async with open_api(FakeService(activation=sigmoid, fusion=plan)) as api:
        assert (await _answer(api, {"scores": _SCORES}))["meta"]["fusion"] == {"mode": "rrf", "weight": 1}
        assert "fusion" not in (await _answer(api, None))["meta"]
        assert "fusion" not in (await _answer(api, {"mode": "none", "scores": _SCORES}))["meta"]


@pytest.mark.parametrize(
    ("fusion", "complaint"),
    [
        ({"scores": [1, 2, 3]}, "each of the 4 documents; it has 3"),
        ({"scores": [1, 2, 3, "NaN"]}, "scores[3] is not a finite number"),
        ({"scores": [1, 2, 3, None]}, "fusion.scores[3] must be a number"),
        ({"mode": "sum"}, "fusion.mode must be one of"),
        ({"weight": 1.5}, "fusion.weight must be at most 1"),
    ],
)
async def test_what_cannot_be_fused_is_refused(api: Api, fusion: Any, complaint: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, "fusion": fusion})
    assert is_our_error(answer, 400, "invalid_request")
    assert complaint in answer.json()["message"]
