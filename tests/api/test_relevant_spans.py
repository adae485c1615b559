"""Cohere's `relevant_spans`: the sentences of the best documents, each with the score that it has as a document."""

from typing import Any

import numpy as np
import pytest

from rerankd.domain import PassagePlan
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of

_SENTENCES = ["Größe zählt 🎻 hier.", "Paris is in France.", "Bread is made of flour."]
_DOCUMENT = "  " + " ".join(_SENTENCES)
_ALL = {"mode": "enabled", "threshold": -1}


def _relevance(text: str) -> float:
    return float(sigmoid(np.array([score_of("q", text)], dtype=np.float32))[0])


async def _spans(api: Api, wishes: Any, *documents: str, **fields: Any) -> list[Any]:
    body = {"query": "q", "documents": documents or [_DOCUMENT], "relevant_spans": wishes, **fields}
    answer = await api.post("/v2/rerank", body)
    assert answer.status_code == 200, answer.text
    return [result.get("relevant_spans") for result in answer.json()["results"]]


async def test_each_span_has_the_score_of_its_text_the_best_one_first(api: Api) -> None:
    (spans,) = await _spans(api, _ALL)
    texts = [_DOCUMENT[span["start"] : span["end"]] for span in spans]
    assert sorted(texts) == sorted(_SENTENCES)
    assert [span["score"] for span in spans] == sorted(map(_relevance, _SENTENCES), reverse=True)
    assert [span["score"] for span in spans] == [_relevance(text) for text in texts]


@pytest.mark.parametrize("most", [1, 2, 3, 9])
async def test_no_more_spans_than_wished(api: Api, most: int) -> None:
    (all_of_them,) = await _spans(api, _ALL)
    (spans,) = await _spans(api, {**_ALL, "max_spans": most})
    assert spans == all_of_them[:most]


async def test_only_spans_above_the_threshold(api: Api) -> None:
    scores = sorted(map(_relevance, _SENTENCES))
    (spans,) = await _spans(api, {"mode": "enabled", "threshold": scores[1]})
    assert [span["score"] for span in spans] == scores[2:]
    # By default the threshold is 0.1.
    (spans,) = await _spans(api, {"mode": "enabled"})
    assert [span["score"] for span in spans or []] == [score for score in scores[::-1] if score > 0.1]


@pytest.mark.parametrize("wishes", [None, {"mode": "disabled"}, {"mode": "enabled", "threshold": 1}])
async def test_the_field_is_absent_where_nothing_is_found(api: Api, wishes: Any) -> None:
    assert await _spans(api, wishes) == [None]


async def test_only_the_documents_that_are_returned_are_searched(open_api: OpenApi) -> None:
    fake = FakeService(activation=sigmoid)
    async with open_api(fake) as api:
        documents = [f"{number} {text}" for number, text in enumerate(_SENTENCES)]
        (spans,) = await _spans(api, _ALL, *[f"{text} More of {text}" for text in documents], top_n=1)
        assert len(spans) == 2
        canary = 1
        assert sum(map(len, fake.engine.batches)) == canary + len(documents) + 2


async def test_a_document_of_one_sentence_costs_nothing_more_with_a_cache(api: Api) -> None:
    (spans,) = await _spans(api, _ALL, _SENTENCES[1])
    assert spans == [{"start": 0, "end": len(_SENTENCES[1]), "score": _relevance(_SENTENCES[1])}]


async def test_no_more_windows_than_passages_of_a_document(open_api: OpenApi) -> None:
    async with open_api(FakeService(activation=sigmoid, passages=PassagePlan(max_passages=3))) as api:
        text = " ".join(f"Sentence number {number}." for number in range(50))
        (spans,) = await _spans(api, _ALL, text)
        spans.sort(key=lambda span: span["start"])
        assert len(spans) == 3
        assert " ".join(text[span["start"] : span["end"]] for span in spans) == text


async def test_blank_documents_and_objects(api: Api) -> None:
    body = {"query": "q", "documents": [{"text": _SENTENCES[1], "id": "x"}, " "], "relevant_spans": _ALL}
    found, blank = (await api.post("/v2/rerank", body)).json()["results"]
    assert found["relevant_spans"][0]["end"] == len(_SENTENCES[1])
    assert "relevant_spans" not in blank


async def test_usage_counts_the_sentences(api: Api) -> None:
    body = {"query": "q", "documents": [_DOCUMENT]}
    alone = (await api.post("/v2/rerank", body)).json()["meta"]["tokens"]["input_tokens"]
    with_spans = (await api.post("/v2/rerank", body | {"relevant_spans": _ALL})).json()["meta"]["tokens"]
    assert with_spans["input_tokens"] == alone + sum(2 + len(text.split()) for text in _SENTENCES)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({}, "relevant_spans.mode is missing"),
        ({"mode": "sometimes"}, "relevant_spans.mode"),
        ({"mode": "enabled", "max_spans": 0}, "relevant_spans.max_spans must be at least 1"),
        ({"mode": "enabled", "threshold": "high"}, "relevant_spans.threshold"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, wishes: Any, message: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], "relevant_spans": wishes})
    assert is_our_error(answer, 400, "invalid_request")
    assert message in answer.json()["message"]


async def test_nothing_is_searched_where_the_documents_are_refused(api: Api) -> None:
    body = {"query": "q", "documents": ["w " * 600], "truncation": "error", "relevant_spans": _ALL}
    assert is_our_error(await api.post("/v2/rerank", body), 400, "invalid_request")
