"""The stage that fuses: what it asks of the model, and which documents count."""

from dataclasses import replace

import numpy as np
import pytest

from rerankd.domain import FusionMode, FusionPlan, FusionWishes, RankedDocument, ScoreOptions, Scores, WindowWishes
from rerankd.pipeline.fusion import FusionStage
from rerankd.scorers.ranking import rank, sigmoid
from tests.fakes import RecordingStage

_DOCUMENTS = ["a", "b", "c", "d"]
_VALUES = {"a": 0.5, "b": 1.0, "c": -1.0, "d": 3.0}
_FIRST_ONLY = FusionPlan(mode=FusionMode.Z_SCORE, weight=1)


class _Partly(RecordingStage):
    """Of the documents c is blank, and d has no score yet."""

    async def score(self, query: str, documents: list[str], options: ScoreOptions) -> Scores:  # type: ignore[override]
        scores = await super().score(query, documents, options)
        blank = np.array([document == "c" for document in documents])
        scored = np.array([document != "d" for document in documents])
        return replace(scores, blank=blank, scored=scored)


async def _ranked(
    inner: RecordingStage, plan: FusionPlan, fusion: FusionWishes | None, windows: WindowWishes | None = None
) -> list[RankedDocument]:
    inner.values = _VALUES
    options = ScoreOptions(fusion=fusion, top_n=2, windows=windows)
    scores = await FusionStage(inner, plan=plan).score("q", _DOCUMENTS, options)
    return rank(scores, activation=sigmoid, top_n=None)


async def test_nothing_changes_without_a_wish() -> None:
    inner = RecordingStage()
    ranked = await _ranked(inner, _FIRST_ONLY, None)
    assert [document.index for document in ranked] == [3, 1, 0, 2]
    assert {document.own_relevance for document in ranked} == {None}
    assert inner.asked[0][2].top_n == 2


async def test_the_model_orders_everything_and_its_own_scores_stay() -> None:
    inner = RecordingStage()
    ranked = await _ranked(inner, _FIRST_ONLY, FusionWishes(scores=[1, 2, 4, 3]))
    assert [document.index for document in ranked] == [2, 3, 1, 0]
    assert [document.value for document in ranked] == [-1.0, 3.0, 1.0, 0.5]
    assert [document.own_relevance for document in ranked] == pytest.approx(
        sigmoid(np.array([-1.0, 3.0, 1.0, 0.5], dtype=np.float32)).tolist()
    )
    relevance = [document.relevance_score for document in ranked]
    assert relevance == sorted(relevance, reverse=True)
    assert inner.asked[0][2].top_n is None


async def test_an_operator_may_fuse_by_the_order_of_the_request() -> None:
    plan = replace(_FIRST_ONLY, ranks=True)
    assert [one.index for one in await _ranked(RecordingStage(), plan, None)] == [0, 1, 2, 3]
    by_request = WindowWishes(initial_order=[3, 2, 1, 0])
    assert [one.index for one in await _ranked(RecordingStage(), plan, None, by_request)] == [3, 2, 1, 0]
    off = FusionWishes(mode=FusionMode.NONE)
    assert [one.index for one in await _ranked(RecordingStage(), plan, off)] == [3, 1, 0, 2]


async def test_documents_without_a_score_come_last_and_do_not_count() -> None:
    plan = FusionPlan(mode=FusionMode.MIN_MAX, weight=0.5)
    ranked = await _ranked(_Partly(), plan, FusionWishes(scores=[1, 2, 100, 50]))
    assert [one.index for one in ranked] == [1, 0, 3, 2]
    # c and d would have changed what 1 and 2 mean.
    assert [one.relevance_score for one in ranked] == [1, 0, 0, 0]
    assert [one.scored for one in ranked] == [True, True, False, True]
