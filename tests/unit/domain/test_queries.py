"""One score of several queries' scores, against the formulas written out."""

import numpy as np
import pytest

from rerankd.domain import QueryMode, QueryWishes
from rerankd.domain.queries import join_values
from rerankd.errors import InvalidRequest

_VALUES = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])


def test_shares_add_up_to_one() -> None:
    assert QueryWishes(others=["b", "c"]).shares == pytest.approx([1 / 3] * 3)
    assert QueryWishes(others=["b"], weights=[3, 1]).shares == pytest.approx([0.75, 0.25])
    assert QueryWishes(others=["b"], weights=[1.7e308, 1.7e308]).shares == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [0, 0], [1, -1], [1, float("inf")], [1, float("nan")], []])
def test_unusable_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InvalidRequest, match=r"query_fusion\.weights"):
        _ = QueryWishes(others=["b"], weights=weights).shares


@pytest.mark.parametrize(
    ("mode", "shares", "expected"),
    [
        (QueryMode.MEAN, [0.25, 0.75], [0.75, 4.0, 3.5]),
        (QueryMode.MAX, [0.25, 0.75], [3, 5, 4]),
        (QueryMode.MAX, [1, 0], [3, 1, 2]),
        (QueryMode.RRF, [0.5, 0.5], [1 / 61 + 1 / 63, 1 / 63 + 1 / 61, 1 / 62 + 1 / 62]),
        (QueryMode.RRF, [0.25, 0.75], [0.5 / 61 + 1.5 / 63, 0.5 / 63 + 1.5 / 61, 0.5 / 62 + 1.5 / 62]),
    ],
)
def test_scores_are_joined(mode: QueryMode, shares: list[float], expected: list[float]) -> None:
    assert join_values(_VALUES, np.array(shares), mode) == pytest.approx(expected)
