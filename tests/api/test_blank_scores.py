"""In every dialect that answers with raw scores, a blank document is below all that have a score."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest

from tests.api.conftest import Api

_BLANK: Final = "\u200b"


class _Dialect(NamedTuple):
    path: str
    body: Callable[[list[str]], dict[str, Any]]
    scores: Callable[[Any], dict[int, float]]


def _by_index(entries: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {entry["index"]: entry[name] for entry in entries}


_DIALECTS: Final = {
    "tei": _Dialect(
        "/rerank",
        lambda texts: {"query": "q", "texts": texts, "raw_scores": True},
        lambda answer: _by_index(answer, "score"),
    ),
    "infinity": _Dialect(
        "/infinity/rerank",
        lambda texts: {"query": "q", "documents": texts, "raw_scores": True},
        lambda answer: _by_index(answer["results"], "relevance_score"),
    ),
    "nim": _Dialect(
        "/v1/ranking",
        lambda texts: {"query": {"text": "q"}, "passages": [{"text": text} for text in texts]},
        lambda answer: _by_index(answer["rankings"], "logit"),
    ),
    "jina": _Dialect(
        "/rerank",
        lambda texts: {"query": "q", "documents": texts, "use_activation": False},
        lambda answer: _by_index(answer["results"], "relevance_score"),
    ),
    "vllm-score": _Dialect(
        "/score",
        lambda texts: {"text_1": "q", "text_2": texts, "use_activation": False},
        lambda answer: _by_index(answer["data"], "score"),
    ),
}


@pytest.mark.parametrize("name", list(_DIALECTS))
@pytest.mark.parametrize("texts", [["a", "b", "", "c", _BLANK], ["a", _BLANK], ["", "b"], ["", _BLANK], [_BLANK]])
async def test_a_blank_document_is_below_all_scored_ones(api: Api, name: str, texts: list[str]) -> None:
    dialect = _DIALECTS[name]
    answer = await api.post(dialect.path, dialect.body(texts))
    assert answer.status_code == 200
    scores = dialect.scores(answer.json())
    assert sorted(scores) == list(range(len(texts)))
    blank = {scores[index] for index, text in enumerate(texts) if text in ("", _BLANK)}
    scored = [scores[index] for index, text in enumerate(texts) if text not in ("", _BLANK)]
    assert len(blank) == 1
    assert blank == {-16.0}
    assert all(score > -16.0 for score in scored)
    order = list(scores)
    if name != "vllm-score":
        assert order == sorted(order, key=lambda index: -scores[index]), "the answer's order is that of its scores"


@pytest.mark.parametrize("name", list(_DIALECTS))
@pytest.mark.parametrize("query", ["", " ", _BLANK, "\ufeff\u00ad"])
async def test_a_blank_query_is_an_error_in_every_dialect(api: Api, name: str, query: str) -> None:
    dialect = _DIALECTS[name]
    body = dialect.body(["a"])
    field = next(field for field in ("query", "text_1") if field in body)
    body[field] = {"text": query} if isinstance(body[field], dict) else query
    answer = await api.post(dialect.path, body)
    assert answer.status_code == 400
    assert "query is empty" in answer.json()["message"]


async def test_an_explanation_has_the_same_score(api: Api) -> None:
    body = {"query": "q", "documents": ["a", _BLANK, "b"], "explain": True}
    results = (await api.post("/v2/rerank", body)).json()["results"]
    raw = [entry["explain"]["score"] for entry in results]
    assert raw == sorted(raw, reverse=True)
    assert (results[-1]["index"], results[-1]["relevance_score"]) == (1, 0.0)
    assert raw[-1] <= -16.0
