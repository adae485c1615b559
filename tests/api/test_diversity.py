"""`diversity` on /v2/rerank: documents that are unlike those before them, in the answer's order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rerankd.domain import DiversityPlan, EmbeddedDocuments, ScoreOptions, Timings
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi, is_our_error
from tests.fakes import FakeService, score_of

_DOCUMENTS = ["one text", "one text more", "", "another thing", "a fourth"]


class Letters:
    """Embeds a text by its letters."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []

    async def vectors(self, documents: Sequence[str], _options: ScoreOptions, /) -> EmbeddedDocuments:
        self.asked.append(documents)
        vectors = [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in documents]
        counts = np.full(len(documents), 7, dtype=np.int64)
        return EmbeddedDocuments(np.array(vectors, dtype=np.float32), counts, Timings(inference_s=1.0))


async def _answer(api: Api, diversity: Any, **fields: Any) -> Any:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, "diversity": diversity, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_order_is_diverse_and_the_model_s_own_relevance_is_explained(open_api: OpenApi) -> None:
    letters = Letters()
    async with open_api(FakeService(activation=sigmoid, embedder=letters)) as api:
        plain = await _answer(api, None, explain=True)
        assert "diversity" not in plain["meta"]
        answer = await _answer(api, {"weight": 0.6, "depth": 3}, explain=True)
        values = np.array([score_of("q", text) if text else -np.inf for text in _DOCUMENTS])
        best = sorted(np.argsort(-values, kind="stable")[:3].tolist())
        assert letters.asked == [[_DOCUMENTS[index] for index in best]]
        embedded = await letters.vectors(letters.asked[0], ScoreOptions())
        marginal = DiversityPlan(weight=0.6).marginal_relevance(values[best], embedded.vectors)
        order = [best[place] for place in np.argsort(-marginal, kind="stable")]
        last = np.argsort(-values, kind="stable")[3]
        assert [result["index"] for result in answer["results"]] == [*order, last, 2]
        scores = [result["relevance_score"] for result in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert 0 <= scores[-1] <= scores[0] <= 1
        own = {result["index"]: result["relevance_score"] for result in plain["results"]}
        told = {result["index"]: result["explain"]["relevance"] for result in answer["results"]}
        assert told == pytest.approx(own)
        assert answer["meta"]["diversity"] == {"weight": 0.6, "depth": 3}
        assert answer["meta"]["tokens"]["input_tokens"] == plain["meta"]["tokens"]["input_tokens"] + 3 * 7
        assert "fusion" not in answer["meta"]
        one = await _answer(api, {"weight": 0.6, "depth": 3}, top_n=2)
        assert [result["index"] for result in one["results"]] == order[:2]
        both = await _answer(api, {}, fusion={"mode": "rrf"})
        assert both["meta"]["diversity"] == {"weight": 0.3, "depth": 100}
        assert both["meta"]["fusion"]["mode"] == "rrf"


async def test_documents_that_are_all_blank_need_no_vectors(open_api: OpenApi) -> None:
    async with open_api(FakeService(embedder=Letters())) as api:
        answer = await api.post("/v2/rerank", {"query": "q", "documents": ["", " "], "diversity": {}})
        assert [result["index"] for result in answer.json()["results"]] == [0, 1]


async def test_a_model_without_vectors_says_what_its_operator_can_do(api: Api) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, "diversity": {}})
    assert is_our_error(answer, 400, "invalid_request")
    assert "leave diversity out, or have its operator set diversity_model" in answer.json()["message"]
    assert (await _answer(api, {"weight": 0}))["results"]


@pytest.mark.parametrize(
    ("diversity", "complaint"),
    [
        ({"weight": 1.5}, "diversity.weight must be at most 1"),
        ({"weight": "x"}, "diversity.weight must be a number"),
        ({"depth": 1}, "diversity.depth must be at least 2"),
        (3, "diversity"),
    ],
)
async def test_what_is_no_wish_is_refused(api: Api, diversity: Any, complaint: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": _DOCUMENTS, "diversity": diversity})
    assert is_our_error(answer, 400, "invalid_request")
    assert complaint in answer.json()["message"]
