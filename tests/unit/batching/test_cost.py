"""The cost model against engines whose cost is known."""

import random

import numpy as np
import pytest

from rerankd.batching.cost import CostModel


def _learnt(
    *, overhead: float, per_token: float, per_square: float, passes: int = 300, noise: float = 0.0
) -> CostModel:
    rng, cost = random.Random(1), CostModel()
    for _ in range(passes):
        length, pairs = rng.randrange(10, 500), rng.randrange(1, 20)
        tokens, squares = length * pairs, length * length * pairs
        seconds = overhead + per_token * tokens + per_square * squares
        cost.learn(tokens=tokens, squares=squares, seconds=seconds * (1 + noise * (rng.random() - 0.5)))
    return cost


def test_nothing_is_known_at_first() -> None:
    cost = CostModel()
    assert not cost.known
    assert cost.seconds(tokens=1000, squares=10**6) == 0


def test_it_knows_how_much_slower_the_engine_has_become() -> None:
    cost = CostModel()
    assert cost.slowdown == 1
    cost.learn(tokens=100, squares=10_000, seconds=0.1)
    assert cost.slowdown == 1
    for _ in range(200):
        cost.learn(tokens=100, squares=10_000, seconds=0.5)
    assert cost.slowdown == pytest.approx(4, rel=0.1), "a fifth of it is forgotten"


def test_one_pass_gives_a_speed() -> None:
    cost = CostModel()
    cost.learn(tokens=100, squares=10_000, seconds=0.5)
    assert not cost.known
    assert cost.seconds(tokens=200, squares=20_000) == pytest.approx(1.0, rel=0.01)


def test_after_some_passes_it_is_known() -> None:
    cost = CostModel()
    for _ in range(20):
        cost.learn(tokens=100, squares=10_000, seconds=0.5)
    assert cost.known


def test_small_passes_that_are_mostly_overhead_hardly_change_the_mean() -> None:
    cost = CostModel()
    for _ in range(30):
        cost.learn(tokens=500, squares=50_000, seconds=0.05)
        cost.learn(tokens=5, squares=25, seconds=0.005)
    assert cost.seconds_per_token == pytest.approx(1e-4, rel=0.15)


@pytest.mark.parametrize(("length", "pairs"), [(20, 3), (100, 10), (400, 12)])
def test_long_texts_cost_more_than_their_tokens(length: int, pairs: int) -> None:
    cost = _learnt(overhead=0.002, per_token=4e-5, per_square=1e-7, noise=0.1)
    tokens, squares = length * pairs, length * length * pairs
    expected = 4e-5 * tokens + 1e-7 * squares + 0.002
    assert cost.seconds(tokens=tokens, squares=squares) == pytest.approx(expected, rel=0.2)


def test_much_work_is_cut_into_usual_passes() -> None:
    cost = CostModel()
    for _ in range(100):
        cost.learn(tokens=500, squares=50_000, seconds=0.05)
    assert cost.seconds(tokens=50_000, squares=5_000_000) == pytest.approx(5.0, rel=0.05)


def test_a_machine_that_gets_slower_is_noticed() -> None:
    cost = _learnt(overhead=0.001, per_token=1e-4, per_square=0.0)
    for _ in range(80):
        cost.learn(tokens=500, squares=50_000, seconds=0.2)
    assert cost.seconds(tokens=500, squares=50_000) == pytest.approx(0.2, rel=0.15)


def test_noise_of_alike_passes_does_not_swing_what_more_of_them_would_take() -> None:
    """A request is several passes' worth; Retry-After is the small difference of two large numbers."""
    rng, cost, fitted = random.Random(2), CostModel(), []
    for number in range(1000):
        lengths = [rng.randrange(50, 235) for _ in range(4)]
        squares = sum(length * length for length in lengths)
        seconds = (0.002 + 4e-5 * sum(lengths) + 2e-8 * squares) * rng.uniform(0.8, 1.2)
        cost.learn(tokens=sum(lengths), squares=squares, seconds=seconds)
        if number >= 100:
            fitted.append(cost.seconds(tokens=30 * 142, squares=30 * 142 * 159))
    assert float(np.std(fitted)) <= 0.04 * float(np.mean(fitted))


def test_a_fit_that_makes_no_sense_is_kept_near_the_mean() -> None:
    """Passes of one shape say nothing about the others."""
    cost = CostModel()
    for seconds in [0.1, 0.3] * 50:
        cost.learn(tokens=500, squares=250_000, seconds=seconds)
    mean = cost.seconds_per_token * 100
    assert 0.5 * mean <= cost.seconds(tokens=100, squares=100) <= 2 * mean


def test_thousands_of_equal_passes_do_not_upset_it() -> None:
    cost = CostModel()
    for _ in range(5000):
        cost.learn(tokens=500, squares=50_000, seconds=0.05)
    cost.learn(tokens=100, squares=1_000, seconds=0.01)
    assert cost.seconds(tokens=500, squares=50_000) == pytest.approx(0.05, rel=0.1)
