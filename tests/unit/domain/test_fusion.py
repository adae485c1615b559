"""Fused scores against the formulas written out, and the orders that they must give."""

from math import sqrt

import numpy as np
import pytest

from rerankd.domain import FusionMode, FusionPlan, FusionWishes
from rerankd.domain.fusion import rank_scores
from rerankd.errors import InvalidRequest

_MODES = [FusionMode.Z_SCORE, FusionMode.MIN_MAX, FusionMode.RRF]
_FIRST = [3.0, 9.0, 6.0, 0.5]
_RERANKED = [0.25, -4.0, 2.0, 1.0]


def _order(scores: object) -> list[int]:
    order: list[int] = np.argsort(-np.asarray(scores), kind="stable").tolist()
    return order


def _z(scores: list[float]) -> list[float]:
    mean = sum(scores) / len(scores)
    deviation = sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - mean) / deviation for score in scores]


def _min_max(scores: list[float]) -> list[float]:
    return [(score - min(scores)) / (max(scores) - min(scores)) for score in scores]


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("mode", "normalize"), [(FusionMode.Z_SCORE, _z), (FusionMode.MIN_MAX, _min_max)])
def test_normalized_scores_are_added(mode: FusionMode, normalize: object, weight: float) -> None:
    assert callable(normalize)
    theirs, ours = normalize(_FIRST), normalize(_RERANKED)
    wanted = [weight * first + (1 - weight) * second for first, second in zip(theirs, ours, strict=True)]
    assert FusionPlan(mode=mode, weight=weight).fuse(_FIRST, _RERANKED) == pytest.approx(wanted)


def test_half_of_the_weight_is_the_usual_sum_of_reciprocal_ranks() -> None:
    fused = FusionPlan(mode=FusionMode.RRF).fuse(_FIRST, _RERANKED)
    assert fused == pytest.approx([1 / 63 + 1 / 63, 1 / 61 + 1 / 64, 1 / 62 + 1 / 61, 1 / 64 + 1 / 62])


@pytest.mark.parametrize("mode", _MODES)
def test_no_weight_gives_the_model_s_order_and_all_of_it_the_first_stage_s(mode: FusionMode) -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 7, 3000):
        first, reranked = random.normal(size=size), random.standard_cauchy(size=size).astype(np.float32)
        assert _order(FusionPlan(mode=mode, weight=0).fuse(first, reranked)) == _order(reranked)
        assert _order(FusionPlan(mode=mode, weight=1).fuse(first, reranked)) == _order(first)


@pytest.mark.parametrize("mode", _MODES)
def test_relevance_is_from_0_to_1_and_keeps_the_order(mode: FusionMode) -> None:
    random = np.random.default_rng(1)
    plan = FusionPlan(mode=mode, weight=0.4)
    fused = plan.fuse(random.normal(size=3000), np.append(random.normal(size=2998), [1e6, 2e6]))
    relevance = plan.relevance(fused)
    assert _order(relevance) == _order(fused)
    assert 0 <= relevance.min() <= relevance.max() <= 1


@pytest.mark.parametrize("mode", [FusionMode.Z_SCORE, FusionMode.MIN_MAX])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e308, 5e-324])
def test_equal_scores_leave_the_order_to_the_others(mode: FusionMode, constant: float) -> None:
    plan = FusionPlan(mode=mode, weight=0.9)
    assert _order(plan.fuse([constant] * 4, _RERANKED)) == _order(_RERANKED)
    assert _order(plan.fuse(_FIRST, [constant] * 4)) == _order(_FIRST)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("first", [[1.7e308, -1.7e308, 0, 1], [5e-324, 0, 0, 1e-310], [1, 1, 1, np.nextafter(1, 2)]])
def test_extreme_scores_give_finite_ones(mode: FusionMode, first: list[float]) -> None:
    fused = FusionPlan(mode=mode, weight=0.5).fuse(first, _RERANKED)
    assert np.isfinite(fused).all()


def test_a_rank_counts_as_its_reciprocal() -> None:
    assert rank_scores([2, 0, 1]) == pytest.approx([1 / 62, 1 / 63, 1 / 61])
    assert FusionWishes().first_scores(range(2)) == pytest.approx([1 / 61, 1 / 62])


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [([1.0], "each of the 2 documents; it has 1"), ([1.0, float("nan")], r"scores\[1\]"), ([], "it has 0")],
)
def test_scores_that_cannot_be_used_are_refused(scores: list[float], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        FusionWishes(scores=scores).first_scores(range(2))


def test_a_wish_for_fusion_gets_the_operator_s_mode_or_a_default() -> None:
    plan = FusionPlan(mode=FusionMode.RRF, weight=0.2)
    assert FusionWishes().within(plan) == plan
    assert FusionWishes(weight=0.7).within(FusionPlan()) == FusionPlan(mode=FusionMode.Z_SCORE, weight=0.7)
    assert FusionWishes(mode=FusionMode.NONE).within(plan).mode is FusionMode.NONE
