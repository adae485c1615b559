"""Order, ties, blanks and the score contract."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.domain import Scores
from rerankd.errors import ScoringFailed
from rerankd.recognition.activations import ScaledSigmoid
from rerankd.scorers.ranking import Activation, activation_of, floor, identity, rank, sigmoid

Values = Sequence[float]


def _scores(values: Values, *, blank: Sequence[bool] | None = None, scored: Sequence[bool] | None = None) -> Scores:
    none = np.zeros(len(values), dtype=np.int64)
    return Scores(
        values=np.array(values, dtype=np.float32),
        tokens=none,
        dropped=none,
        blank=None if blank is None else np.array(blank, dtype=np.bool_),
        scored=None if scored is None else np.array(scored, dtype=np.bool_),
    )


def _indices(values: Values, *, blank: list[bool] | None = None, top_n: int | None = None) -> list[int]:
    return [document.index for document in rank(_scores(values, blank=blank), activation=sigmoid, top_n=top_n)]


@pytest.mark.parametrize(
    ("values", "blank", "top_n", "expected"),
    [
        ([1.0], [False], None, [0]),
        ([1.0, 3.0, 2.0], [False] * 3, None, [1, 2, 0]),
        ([2.0, 2.0, 2.0], [False] * 3, None, [0, 1, 2]),
        ([1.0, 2.0, 1.0, 2.0], [False] * 4, None, [1, 3, 0, 2]),
        ([0.0, -0.0], [False] * 2, None, [0, 1]),
        ([1.0, 3.0, 2.0], [False] * 3, 1, [1]),
        ([1.0, 3.0, 2.0], [False] * 3, 3, [1, 2, 0]),
        ([1.0, 3.0, 2.0], [False] * 3, 99, [1, 2, 0]),
        ([1.0, 3.0, 2.0], [False] * 3, 10**30, [1, 2, 0]),
        ([-5.0, 99.0, -6.0], [False, True, False], None, [0, 2, 1]),
        ([9.0, -1.0, 9.0, -2.0], [True, False, True, False], None, [1, 3, 0, 2]),
        ([0.0, 0.0], [True, True], None, [0, 1]),
        ([nan, 1.0], [True, False], None, [1, 0]),
    ],
)
def test_the_highest_comes_first_ties_by_index_blanks_last(
    values: Values, blank: list[bool], top_n: int | None, expected: list[int]
) -> None:
    assert _indices(values, blank=blank, top_n=top_n) == expected


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_score_that_is_no_finite_number_is_an_error_that_names_the_document(bad: float) -> None:
    with pytest.raises(ScoringFailed, match="document 1"):
        _indices([1.0, bad, bad])


def test_a_blank_document_has_relevance_zero() -> None:
    ranked = rank(_scores([-40.0, 0.0], blank=[False, True]), activation=sigmoid, top_n=None)
    assert [(document.index, document.relevance_score) for document in ranked] == [
        (0, pytest.approx(0.0, abs=1e-10)),
        (1, 0.0),
    ]


def test_a_blank_document_never_looks_better_than_one_with_a_negative_score() -> None:
    ranked = rank(_scores([-4.0, 0.0, -2.0], blank=[False, True, False]), activation=identity, top_n=None)
    assert [(document.index, document.relevance_score, document.value) for document in ranked] == [
        (2, -2.0, -2.0),
        (0, -4.0, -4.0),
        (1, -5.0, -5.0),
    ]


@pytest.mark.parametrize(
    ("values", "activation", "expected"),
    [
        ([1.4156], sigmoid, -16.0),
        ([-15.5, 3.0], sigmoid, -16.0),
        ([-16.0], sigmoid, -17.0),
        ([-40.0], sigmoid, -41.0),
        ([], sigmoid, -16.0),
        ([1.0, 0.25], identity, 0.0),
        ([0.0], identity, -1.0),
        ([3.0], identity, 0.0),
        ([-2.0], identity, -3.0),
        ([], identity, 0.0),
        ([-1e30], sigmoid, float(np.nextafter(np.float32(-1e30), np.float32(-inf)))),
        ([float(np.finfo(np.float32).min)], identity, float(np.finfo(np.float32).min)),
    ],
)
def test_what_has_no_score_is_below_every_raw_score_by_a_finite_number(
    values: Values, activation: Activation, expected: float
) -> None:
    lowest = floor(np.array(values, dtype=np.float32), activation)
    assert float(lowest) == expected
    assert min(0.0, float(activation(np.array([lowest]))[0])) <= 0


def test_a_blank_document_is_below_a_scored_one_in_raw_scores_too() -> None:
    scored, blank = rank(_scores([1.4156, 0.0], blank=[False, True]), activation=sigmoid, top_n=None)
    assert (scored.index, blank.index) == (0, 1)
    assert blank.value < scored.value
    assert blank.relevance_score == 0.0


@given(
    pairs=st.lists(st.tuples(st.floats(-200, 200, width=32), st.booleans()), min_size=1, max_size=60),
    activation=st.sampled_from([sigmoid, identity, activation_of(ScaledSigmoid(scale=0.2, bias=-2.65))]),
    top_n=st.none() | st.integers(1, 80),
)
def test_the_result_is_a_sorted_part_of_the_documents(
    pairs: list[tuple[float, bool]], activation: Activation, top_n: int | None
) -> None:
    scores = _scores([value for value, _ in pairs], blank=[is_blank for _, is_blank in pairs])
    ranked = rank(scores, activation=activation, top_n=None)
    assert sorted(document.index for document in ranked) == list(range(len(pairs)))
    relevance = [document.relevance_score for document in ranked]
    assert relevance == sorted(relevance, reverse=True)
    raw = [document.value for document in ranked]
    assert raw == sorted(raw, reverse=True)
    with_text, without = (
        [document for document in ranked if pairs[document.index][1] is is_blank] for is_blank in (False, True)
    )
    assert all(low.value < high.value for low in without for high in with_text)
    assert all(low.relevance_score <= high.relevance_score for low in without for high in with_text)
    assert rank(scores, activation=activation, top_n=top_n) == ranked[:top_n]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_sigmoid_stays_between_zero_and_one_and_keeps_the_order(values: Values) -> None:
    ordered = np.sort(np.array(values, dtype=np.float32))
    relevance = sigmoid(ordered)
    assert relevance.dtype == np.float32
    assert ((relevance >= 0) & (relevance <= 1)).all()
    assert (np.diff(relevance) >= 0).all()


@pytest.mark.parametrize(("logit", "expected"), [(0.0, 0.5), (2.0, 0.880797), (-2.0, 0.119203), (1e4, 1.0)])
def test_sigmoid_values(logit: float, expected: float) -> None:
    assert sigmoid(np.array([logit], dtype=np.float32))[0] == pytest.approx(expected, abs=1e-6)


def test_documents_without_a_score_come_after_those_with_one_in_their_order() -> None:
    scores = _scores(
        [9.0, 1.0, 9.0, 2.0, 0.0],
        blank=[False, False, False, False, True],
        scored=[False, True, False, True, True],
    )
    ranked = rank(scores, activation=identity, top_n=None)
    assert [(one.index, one.scored) for one in ranked] == [(3, True), (1, True), (0, False), (2, False), (4, True)]
    assert [one.relevance_score for one in ranked] == [2.0, 1.0, 0.0, 0.0, 0.0]


def test_nothing_is_scored() -> None:
    ranked = rank(_scores([nan, nan], scored=[False, False]), activation=identity, top_n=None)
    assert [(one.index, one.relevance_score, one.value, one.scored) for one in ranked] == [
        (0, 0.0, 0.0, False),
        (1, 0.0, 0.0, False),
    ]


def test_a_document_that_a_cascade_placed_names_the_model() -> None:
    scores = replace(_scores([1.0, 3.0, 2.0]), placed_by=np.array(["cheap", "dear", None], dtype=np.object_))
    ranked = rank(scores, activation=identity, top_n=2)
    assert [(one.index, one.placed_by) for one in ranked] == [(1, "dear"), (2, None)]


@pytest.mark.parametrize(("scale", "bias"), [(1, 0), (0.2, 0), (1, -2.65), (0.5, 3)])
def test_a_scaled_sigmoid_is_the_sigmoid_of_scale_times_score_plus_bias(scale: float, bias: float) -> None:
    values = np.array([-300, -7.5, 0, 2.65, 11, 300], dtype=np.float32)
    expected = 1 / (1 + np.exp(-(scale * values.astype(np.float64) + bias)))
    assert activation_of(ScaledSigmoid(scale=scale, bias=bias))(values) == pytest.approx(expected, abs=1e-7)
