"""Each fit against what defines it: normal equations, a vanishing gradient, the min-max formula."""

import numpy as np
import pytest

from rerankd.errors import ConfigError
from rerankd.tools.calibration.fitting import (
    Flags,
    Values,
    brier_score,
    expected_calibration_error,
    fit_isotonic,
    fit_platt,
    fit_ridge,
    normalized_auc,
)


def _sample(size: int, *, seed: int = 0) -> tuple[Values, Flags]:
    random = np.random.default_rng(seed)
    scores = random.normal(scale=2, size=size)
    return scores, random.random(size) < 1 / (1 + np.exp(-(1.7 * scores - 0.6)))


def test_platt_finds_the_curve_that_made_the_labels() -> None:
    fitted = fit_platt(*_sample(100_000))
    assert fitted.scale == pytest.approx(1.7, rel=0.03)
    assert fitted.bias == pytest.approx(-0.6, abs=0.05)


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("size", [8, 50, 2000])
def test_platts_gradient_vanishes(size: int, shift: float) -> None:
    scores, relevant = _sample(size, seed=3)
    scores = scores + shift
    fitted = fit_platt(scores, relevant)
    positives, negatives = relevant.sum(), (~relevant).sum()
    targets = np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    residual = 1 / (1 + np.exp(-(fitted.scale * scores + fitted.bias))) - targets
    assert residual.sum() == pytest.approx(0, abs=1e-6 * size)
    assert residual @ (scores - scores.mean()) == pytest.approx(0, abs=1e-6 * size)


def test_labels_that_scores_separate_give_a_finite_curve() -> None:
    fitted = fit_platt(np.array([-1.0, -0.5, 0.5, 1.0]), np.array([False, False, True, True]))
    assert 0 < fitted.scale < 100


def test_a_model_that_ranks_the_wrong_way_is_refused() -> None:
    scores, relevant = _sample(500)
    with pytest.raises(ConfigError, match="do not score higher"):
        fit_platt(-scores, relevant)


def _min_max(values: Values) -> list[float]:
    """Isotonic regression by its closed form: the largest over starts of the smallest over ends of a mean."""
    size = len(values)
    return [
        max(min(float(values[start : end + 1].mean()) for end in range(place, size)) for start in range(place + 1))
        for place in range(size)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_isotonic_is_the_min_max_formula(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, relevant = np.arange(25.0), random.random(25) < 0.5
    fitted = fit_isotonic(scores[::-1], relevant[::-1])
    assert fitted.activation(scores.astype(np.float32)) == pytest.approx(_min_max(relevant.astype(float)), abs=1e-6)


def test_equal_scores_share_one_probability_and_what_lies_beyond_gets_the_nearest() -> None:
    fitted = fit_isotonic(np.array([1.0, 1.0, 1.0, 3.0, 3.0]), np.array([True, False, False, True, True]))
    assert fitted.activation(np.array([-9, 1, 2, 3, 9], dtype=np.float32)) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize(("queries", "features"), [(30, 5), (4, 9)])
def test_ridge_solves_its_normal_equations(queries: int, features: int) -> None:
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=(queries, features)) + 5, random.random(queries)
    weights, bias = fit_ridge(inputs, targets, alpha=0.1)
    residual = inputs @ weights + bias - targets
    assert residual.sum() == pytest.approx(0, abs=1e-9)
    assert inputs.T @ residual + 0.1 * weights == pytest.approx(np.zeros(features), abs=1e-9)


def test_calibration_error_by_hand() -> None:
    probabilities, relevant = np.array([0.1, 0.1, 0.9, 1.0]), np.array([False, True, True, True])
    assert expected_calibration_error(probabilities, relevant, bins=2) == pytest.approx((abs(0.2 - 1) + 0.1) / 4)
    assert brier_score(probabilities, relevant) == pytest.approx((0.01 + 0.81 + 0.01) / 4)


def test_an_oracle_has_a_normalized_area_of_1_and_chance_of_0() -> None:
    random = np.random.default_rng(0)
    qualities = random.random(400)
    assert normalized_auc(qualities, qualities) == pytest.approx(1)
    assert normalized_auc(np.ones(400), qualities) == pytest.approx(0)
    by_chance = [normalized_auc(random.random(400), qualities) for _ in range(50)]
    assert np.mean(by_chance) == pytest.approx(0, abs=0.03)
    assert normalized_auc(-qualities, qualities) < -0.5
    assert normalized_auc(random.random(9), np.ones(9)) == 0
