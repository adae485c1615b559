"""`queries` and `evidence` on /v2/rerank."""

from typing import Any

import numpy as np
import pytest

from rerankd.cache.memory import MemoryCache
from rerankd.domain import QueryMode
from rerankd.domain.queries import join_values
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of

_DOCUMENTS = ["one text", "another text", "a third text", "and a fourth"]
_OTHERS = ["a rewrite", "another question"]
_VALUES = np.array([[score_of(query, text) for text in _DOCUMENTS] for query in ["q", *_OTHERS]])


async def _answer(api: Api, **fields: Any) -> Any:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _relevance(values: Any) -> list[float]:
    relevance: list[float] = sigmoid(np.array(values, dtype=np.float32)).tolist()
    return relevance


@pytest.mark.parametrize("weights", [None, [4, 1, 1]])
@pytest.mark.parametrize("mode", ["rrf", "max", "mean"])
async def test_the_order_is_that_of_all_queries(api: Api, mode: str, weights: list[float] | None) -> None:
    fusion = {"mode": mode, "weights": weights}
    answer = await _answer(api, queries=_OTHERS, query_fusion=fusion, explain=True)
    shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    joined = join_values(_VALUES, shares, QueryMode(mode))
    order = np.argsort(-joined, kind="stable").tolist()
    assert [result["index"] for result in answer["results"]] == order
    expected = (30.5 * joined).tolist() if mode == "rrf" else _relevance(joined)
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [expected[index] for index in order], abs=1e-6
    )
    raw = joined if mode == "mean" else _VALUES.max(axis=0)
    assert [result["explain"]["score"] for result in answer["results"]] == pytest.approx(raw[order].tolist(), abs=1e-5)
    assert answer["meta"]["tokens"]["input_tokens"] > (await _answer(api))["meta"]["tokens"]["input_tokens"]
    assert "fusion" not in answer["meta"]
    assert "rerank_fused_requests_total" not in {
        sample.name for metric in api.observer.registry.collect() for sample in metric.samples
    }


async def test_each_query_is_cached_as_if_it_were_alone(open_api: OpenApi) -> None:
    fake = FakeService(activation=sigmoid, cache=MemoryCache(max_entries=100))
    async with open_api(fake) as api:
        for query in ("q", *_OTHERS):
            await _answer(api, query=query)
        passes = len(fake.engine.batches)
        answer = await _answer(api, queries=_OTHERS, explain=True)
        assert all(result["explain"]["cached"] for result in answer["results"])
        assert len(fake.engine.batches) == passes
        await _answer(api, queries=["a new one"])
        assert len(fake.engine.batches) > passes


async def test_the_first_stage_is_fused_with_what_is_joined(api: Api) -> None:
    answer = await _answer(api, queries=_OTHERS, fusion={"weight": 1, "scores": [1, 4, 2, 3]})
    assert [result["index"] for result in answer["results"]] == [1, 3, 2, 0]
    assert answer["meta"]["fusion"]["weight"] == 1
    answer = await _answer(api, queries=_OTHERS, fusion={"weight": 0})
    alone = await _answer(api, queries=_OTHERS)
    assert [one["index"] for one in answer["results"]] == [one["index"] for one in alone["results"]]


async def test_blank_documents_come_last(api: Api) -> None:
    answer = await _answer(api, documents=[" ", *_DOCUMENTS], queries=_OTHERS)
    assert answer["results"][-1] == {"index": 0, "relevance_score": 0}


async def test_evidence_is_read_behind_each_query(api: Api) -> None:
    evidence = ["a fact", "another fact"]
    behind = "\n".join(["q", *evidence])
    answer = await _answer(api, evidence=evidence, explain=True)
    order = sorted(range(4), key=lambda index: -score_of(behind, _DOCUMENTS[index]))
    assert [result["index"] for result in answer["results"]] == order
    both = await _answer(api, evidence=evidence, queries=["b"], query_fusion={"mode": "max"}, explain=True)
    best = [max(score_of("\n".join([query, *evidence]), text) for query in "qb") for text in _DOCUMENTS]
    assert {one["index"]: one["explain"]["score"] for one in both["results"]} == pytest.approx(dict(enumerate(best)))


@pytest.mark.parametrize(
    ("fields", "status", "complaint"),
    [
        ({"queries": ["a", " "]}, 400, "the query is empty"),
        ({"queries": ["a"], "query_fusion": {"weights": [1]}}, 400, "query_fusion.weights must have 2 numbers"),
        ({"queries": ["a"], "query_fusion": {"mode": "sum"}}, 400, "query_fusion.mode must be one of"),
        ({"queries": ["a"] * 12}, 413, "13 queries of 4 documents"),
        ({"queries": ["a" * 1001]}, 413, "at most 1000 characters in a query; got 1001"),
        ({"evidence": ["a" * 1000]}, 413, "at most 1000 characters in a query"),
        ({"queries": [1]}, 400, "queries[0] must be a string"),
        ({"query_fusion": {"mode": "max"}}, 400, "query_fusion joins several queries, and there is one"),
    ],
)
async def test_what_is_too_much_or_no_query_is_refused(api: Api, fields: Any, status: int, complaint: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, **fields})
    assert is_our_error(answer, status, {400: "invalid_request", 413: "request_too_large"}[status]), answer.text
    assert complaint in answer.json()["message"]
