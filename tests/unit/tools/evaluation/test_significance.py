"""Intervals that hold what they promise, and a test that tells a difference from chance."""

from itertools import product

import numpy as np
import pytest

from rerankd.tools.evaluation import significance
from rerankd.tools.evaluation.significance import interval_of_mean, paired_difference

_GENERATOR_SEED = 7


def _values(count: int, *, mean: float = 0.5, spread: float = 0.2) -> np.ndarray:
    return np.random.default_rng(_GENERATOR_SEED).normal(mean, spread, count)


def test_the_interval_contains_the_mean_and_shrinks_with_more_queries() -> None:
    few, many = interval_of_mean([_values(25)]), interval_of_mean([_values(2500)])
    for interval, values in ((few, _values(25)), (many, _values(2500))):
        assert interval.low < interval.mean < interval.high
        assert interval.mean == pytest.approx(values.mean())
    assert many.high - many.low < (few.high - few.low) / 5


def test_the_interval_has_the_width_that_theory_expects() -> None:
    values = _values(400)
    interval = interval_of_mean([values])
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.08)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    intervals = [interval_of_mean([generator.normal(0.5, 0.2, 50)], resamples=500) for _ in range(200)]
    covered = np.mean([interval.low <= 0.5 <= interval.high for interval in intervals])
    assert 0.88 <= covered <= 0.99


def test_every_set_counts_the_same_in_the_mean_of_sets() -> None:
    interval = interval_of_mean([np.full(1000, 0.2), np.full(10, 0.8)])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))


def test_memory_is_bounded_without_changing_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = paired_difference([_values(50, mean=0.02)]), interval_of_mean([_values(50)])
    monkeypatch.setattr(significance, "_ELEMENTS_AT_A_TIME", 999)
    pieces = paired_difference([_values(50, mean=0.02)]), interval_of_mean([_values(50)])
    assert pieces[0].p == pytest.approx(whole[0].p, abs=0.02)
    assert pieces[1].low == pytest.approx(whole[1].low, abs=0.01)


def test_an_obvious_difference_is_significant_and_chance_is_not() -> None:
    assert paired_difference([_values(100, mean=0.2)]).p < 0.001
    balanced = np.concatenate([_values(50, mean=0.0), -_values(50, mean=0.0)])
    assert paired_difference([balanced]).p > 0.9


def test_no_difference_at_all_is_certainly_none() -> None:
    difference = paired_difference([np.zeros(10)])
    assert (difference.mean, difference.p) == (0, 1)


def test_p_is_that_of_every_possible_flip() -> None:
    values = np.array([0.3, 0.1, 0.25, -0.05, 0.2, 0.15, -0.1, 0.4])
    flips = np.array(list(product((1, -1), repeat=len(values))))
    exact = np.mean(np.abs(flips @ values) >= abs(values.sum()) - 1e-12)
    assert paired_difference([values]).p == pytest.approx(exact, abs=0.01)


def test_under_chance_p_is_small_as_rarely_as_it_says() -> None:
    generator = np.random.default_rng(5)
    found = [paired_difference([generator.normal(0, 1, 30)], permutations=500).p <= 0.1 for _ in range(300)]
    assert 0.05 <= np.mean(found) <= 0.16


def test_the_same_values_give_the_same_answer() -> None:
    values = [_values(30, mean=0.05), _values(7)]
    assert paired_difference(values) == paired_difference(values)
    assert interval_of_mean(values) == interval_of_mean(values)
