"""Maximal marginal relevance, against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.domain import DiversityPlan, DiversityWishes


def by_definition(relevance: list[float], vectors: list[list[float]], weight: float) -> list[int]:
    """The order in which documents are chosen, one after another, each compared with each one before."""
    spread = max(relevance) - min(relevance)
    gains = [(one - min(relevance)) / spread if spread else 0 for one in relevance]

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return max(0.0, float(np.dot(a, b)) / lengths) if lengths else 0.0

    chosen: list[int] = []
    while len(chosen) < len(relevance):
        left = [index for index in range(len(relevance)) if index not in chosen]
        marginal = {
            index: (1 - weight) * gains[index]
            - weight * max((cosine(vectors[index], vectors[one]) for one in chosen), default=0)
            for index in left
        }
        best = max(marginal.values())
        chosen.append(min(index for index in left if marginal[index] > best - 1e-6))
    return chosen


@given(st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.integers(0, 10**6))
def test_the_order_is_that_of_the_definition(documents: int, weight: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    relevance = random.normal(size=documents).tolist()
    vectors = random.normal(size=(documents, 3)).astype(np.float32)
    values = DiversityPlan(weight=weight).marginal_relevance(relevance, vectors)
    assert np.argsort(-values, kind="stable").tolist() == by_definition(relevance, vectors.tolist(), weight)
    assert (values >= -1e-9).all()
    assert (values <= 1 + 1e-9).all()


def test_a_copy_comes_behind_what_is_new() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    plan = DiversityPlan(weight=0.5)
    assert np.argsort(-plan.marginal_relevance([3.0, 2.9, 1.0], vectors)).tolist() == [0, 2, 1]
    assert DiversityPlan(weight=0).marginal_relevance([1, 3, 2], vectors) == pytest.approx([0, 1, 0.5])
    zeros = np.zeros((3, 2), dtype=np.float32)
    assert np.argsort(-plan.marginal_relevance([1, 3, 2], zeros)).tolist() == [1, 2, 0]
    assert plan.marginal_relevance([1, 1, 1], vectors) == pytest.approx([0.5, 0, 0.5])


def test_wishes_are_never_deeper_than_the_plan() -> None:
    plan = DiversityPlan(weight=0.4, depth=20)
    assert DiversityWishes().within(plan) == plan
    assert DiversityWishes(weight=0, depth=5).within(plan) == DiversityPlan(weight=0, depth=5)
    assert DiversityWishes(depth=50).within(DiversityPlan(depth=20)) == DiversityPlan(weight=0.3, depth=20)
