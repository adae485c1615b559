"""`prune`: what is left of each document, in the dialects of Cohere and Jina."""

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from rerankd.api.dialects.base import Dialect, RequestLimits
from rerankd.api.dialects.cohere import COHERE_V2
from rerankd.api.dialects.jina import JINA
from rerankd.domain import PruneWishes, RankedDocument, RerankResult, Scores
from tests.api.conftest import Api, is_our_error
from tests.fakes import IMAGES

_LIMITS = RequestLimits(documents=9, queries=9, query_chars=32_768, rank_fields=9, fields=9, images=IMAGES)

_DOCUMENT = "  Größe zählt 🎻 hier. Paris is in France.  Bread is made of flour."


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank"])
@pytest.mark.parametrize("wish", [True, {}, {"threshold": 0.5}, {"always_select_title": False}])
async def test_a_model_that_cannot_prune_says_so(api: Api, path: str, wish: Any) -> None:
    answer = await api.post(path, {"query": "q", "documents": [_DOCUMENT], "prune": wish})
    assert is_our_error(answer, 400, "invalid_request")
    assert "does not prune documents; leave prune out" in answer.json()["message"]


@pytest.mark.parametrize("wish", [False, None])
async def test_no_wish_is_no_wish(api: Api, wish: Any) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": [_DOCUMENT], "prune": wish})
    assert answer.status_code == 200
    assert "pruned" not in answer.json()["results"][0]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"threshold": 2}, "prune.threshold must be at most 1"),
        ({"threshold": "high"}, "prune.threshold must be a number"),
        ("yes please", "prune must be"),
    ],
)
async def test_mistakes_are_named(api: Api, wish: Any, says: str) -> None:
    answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], "prune": wish})
    assert is_our_error(answer, 400, "invalid_request")
    assert says in answer.json()["message"]


@pytest.mark.parametrize("dialect", [COHERE_V2, JINA], ids=lambda dialect: dialect.name)
def test_spans_are_code_points_of_the_text_that_was_read(dialect: Dialect) -> None:
    first, last = "Größe zählt 🎻 hier.", "Bread is made of flour."
    spans = tuple((_DOCUMENT.index(text), _DOCUMENT.index(text) + len(text)) for text in (first, last))
    fields = {"query": "q", "documents": [{"text": _DOCUMENT, "id": 7}, "nothing", "not read"], "prune": True}
    body = dialect.parse(fields, orjson.dumps(fields), limits=_LIMITS)
    assert body.to_requests()[0].options.prune == PruneWishes()
    kept = np.full(3, None, dtype=np.object_)
    kept[0], kept[1] = spans, ()
    scores = replace(Scores.unread(3), kept=kept)
    results = [RankedDocument(index, 0.5, 0.0) for index in range(3)]
    result = RerankResult(model="m", scorer="pruning", results=results, scores=scores)
    answer: Any = body.render([result], request_id="x")
    found, nothing, unread = answer["results"]
    assert found["pruned"] == {"text": f"{first} {last}", "spans": spans}
    assert nothing["pruned"] == {"text": "", "spans": ()}
    assert "pruned" not in unread
