"""Schedules of comparisons: nothing is lost, consistent models get their order, and calls are those of the papers."""

from collections.abc import Callable, Sequence
from itertools import permutations
from math import ceil, log2, nan
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.pipeline.best_path import MOST_EXACT, Weights, best_path, weight_of
from rerankd.pipeline.choices import METHODS, Answer, Comparison, Extent, of_both_orders, winner
from rerankd.pipeline.partial_order import PartialOrder

Answering = Callable[[Comparison], Answer]
EXACT = ("setwise", "all-pairs", "prp", "prp-sorting", "prp-sliding", "tsp")


def run(name: str, extent: Extent, answer: Answering) -> tuple[list[int], list[int], list[list[Comparison]]]:
    """The order, what is settled, and the rounds."""
    method = METHODS[name]
    standing = method.standing(extent.candidates)
    schedule = method.run(standing, extent)
    rounds: list[list[Comparison]] = []
    told: list[list[int]] = []
    answers: list[Answer] | None = None
    while True:
        try:
            comparisons = next(schedule) if answers is None else schedule.send(answers)
        except StopIteration:
            order = standing.order()
            assert all(order[: len(settled)] == settled for settled in told), "what was settled once is final"
            return order, standing.settled, rounds
        told.append(list(standing.settled))
        assert comparisons, "a round asks something"
        for one in comparisons:
            assert len(set(one)) == len(one)
            assert 2 <= len(one) <= (2 if method.pairs else extent.window)
        assert sorted(standing.order()) == list(range(extent.candidates))
        rounds.append(list(comparisons))
        answers = [float(answer(one)) for one in comparisons]


def always(answer: Answer) -> Answering:
    return lambda _: answer


def extent(count: int, *, window: int = 20, settle: int = 10, rounds: int = 0) -> Extent:
    return Extent(candidates=count, window=window, settle=settle, rounds=rounds)


def perfect(count: int, seed: int) -> tuple[list[int], Answering]:
    """One true order, and a model that knows it."""
    truth = list(range(count))
    Random(seed).shuffle(truth)
    rank = {place: number for number, place in enumerate(truth)}
    return truth, lambda one: min(range(len(one)), key=lambda index: rank[one[index]])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    st.one_of(st.integers(1, 14), st.integers(1, 45)),
    st.integers(3, 21),
    st.integers(1, 50),
    st.integers(0, 9),
    st.integers(0, 2**32),
)
def test_whatever_a_model_answers_no_document_is_lost_and_bounds_hold(
    name: str, count: int, window: int, settle: int, rounds: int, seed: int
) -> None:
    random = Random(seed)

    def anything(one: Comparison) -> Answer:
        answers: list[float] = [*range(len(one)), nan, *([0.5, 0.3] if len(one) == 2 else [])]
        return random.choice(answers)

    size = extent(count, window=window, settle=settle, rounds=rounds)
    order, settled, asked = run(name, size, anything)
    assert sorted(order) == list(range(count))
    assert order[: len(settled)] == settled
    assert sum(map(len, asked)) <= METHODS[name].most(size)
    if name in EXACT:
        assert len(settled) >= min(settle, count - 1)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(EXACT),
    st.one_of(st.integers(1, 14), st.integers(1, 40)),
    st.integers(3, 20),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_a_consistent_model_gets_its_first_places(name: str, count: int, window: int, settle: int, seed: int) -> None:
    truth, answer = perfect(count, seed)
    order, _, _ = run(name, extent(count, window=window, settle=settle), answer)
    assert order[:settle] == truth[:settle]
    whole, _, _ = run(name, extent(count, window=window, settle=count), answer)
    assert whole == truth


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["single-elimination", "swiss"]), st.integers(1, 70), st.integers(0, 2**32))
def test_a_tournament_finds_a_consistent_models_best(name: str, count: int, seed: int) -> None:
    truth, answer = perfect(count, seed)
    order, _, rounds = run(name, extent(count), answer)
    assert order[0] == truth[0]
    assert len(rounds) == (ceil(log2(count)) if count > 1 else 0)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("count", [1, 2, 3, 13, 14, 33])
def test_where_a_model_says_nothing_the_order_of_the_first_stage_stands(name: str, count: int) -> None:
    for silence in [nan] if name == "setwise" else [nan, 0.5]:
        order, _, _ = run(name, extent(count, settle=count), always(silence))
        assert order == list(range(count))


@pytest.mark.parametrize(("window", "calls"), [(3, 140), (4, 82), (10, 31), (20, 23)])
def test_setwise_asks_as_often_as_in_its_paper(window: int, calls: int) -> None:
    asked = []
    for seed in range(40):
        truth, answer = perfect(100, seed)
        order, settled, rounds = run("setwise", extent(100, window=window), answer)
        assert settled == order[:10] == truth[:10]
        asked.append(sum(map(len, rounds)))
    assert abs(np.mean(asked) - calls) < 2
    assert abs(METHODS["setwise"].expected(extent(100, window=window)) - calls) <= 3


@pytest.mark.parametrize(
    ("name", "calls", "rounds"),
    [
        ("all-pairs", 4950, 1),
        ("prp", 4950, 1),
        ("tsp", 4950, 1),
        ("prp-sliding", 945, 108),
        ("single-elimination", 99, 7),
        ("swiss", 350, 7),
    ],
)
def test_other_schedules_ask_a_fixed_number_of_times(name: str, calls: int, rounds: int) -> None:
    _, answer = perfect(100, seed=0)
    _, _, asked = run(name, extent(100), answer)
    assert (sum(map(len, asked)), len(asked)) == (calls, rounds)
    assert METHODS[name].expected(extent(100)) == METHODS[name].most(extent(100)) == calls


def test_a_winner_says_nothing_about_those_that_it_beats() -> None:
    standing = METHODS["setwise"].standing(6)
    standing.learn((0, 1, 2, 5), 3)
    assert standing.order() == [5, 3, 4, 0, 1, 2], "5 is better than three, which stay in their order behind the others"


def test_what_was_learnt_first_stands() -> None:
    known = PartialOrder(4)
    known.learn_best(2, [0, 1])
    known.learn_best(1, [3])
    known.learn_best(3, [2])
    assert known.is_above(2, 3), "it follows"
    assert not known.is_above(3, 2)
    assert known.ranked(range(4)) == [2, 1, 0, 3]


def test_both_orders_must_agree() -> None:
    assert of_both_orders(0, 1) == 0
    assert of_both_orders(1, 0) == 1
    assert of_both_orders(0, 0) == 0.5
    assert of_both_orders(0.25, 0.5) == pytest.approx(0.375)
    assert of_both_orders(0.25, 0.9, decided=True) == 0
    assert of_both_orders(0.25, 0.4, decided=True) == 0.5
    assert np.isnan(of_both_orders(nan, 1, decided=True))
    assert [winner((7, 8), answer) for answer in (0, 0.4, 0.5, 0.6, nan)] == [7, 7, None, 8, None]


def test_swiss_rounds_pair_equals_and_nobody_meets_twice() -> None:
    random = Random(1)
    for count in (2, 3, 4, 5, 8, 9, 16, 31):
        _, _, rounds = run("swiss", extent(count, rounds=count), lambda _: random.choice([0, 1, 0.5]))
        met = [frozenset(one) for asked in rounds for one in asked]
        assert len(met) == len(set(met))
        assert len(rounds) >= min(count - 1, ceil(log2(count)) + 1)
        for asked in rounds:
            players = [place for one in asked for place in one]
            assert len(players) == len(set(players))
    truth, answer = perfect(8, seed=3)
    _, _, rounds = run("swiss", extent(8), answer)
    won = dict.fromkeys(range(8), 0)
    for asked in rounds:
        assert all(won[first] == won[second] for first, second in asked), "eight candidates never float"
        for one in asked:
            won[one[int(answer(one))]] += 1
    assert max(won, key=won.__getitem__) == truth[0]


def test_in_a_bracket_the_first_two_meet_last() -> None:
    _, settled, rounds = run("single-elimination", extent(6), lambda _: 0)
    assert settled == [0]
    assert [sorted(asked) for asked in rounds] == [[(2, 5), (3, 4)], [(0, 3), (1, 2)], [(0, 1)]]


def brute_force(weights: Weights) -> float:
    return max(weight_of(list(path), weights) for path in permutations(range(len(weights))))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32), st.booleans())
def test_a_short_path_is_the_best_of_all(count: int, seed: int, decided: bool) -> None:
    weights = np.random.default_rng(seed).random((count, count))
    weights = np.round(weights * 2) / 2 if decided else weights
    path = best_path(weights)
    assert sorted(path) == list(range(count))
    assert weight_of(path, weights) == pytest.approx(brute_force(weights), abs=1e-8)


@pytest.mark.parametrize("count", [MOST_EXACT, MOST_EXACT + 1, 40])
def test_a_long_path_is_near_the_best(count: int) -> None:
    generator = np.random.default_rng(count)
    weights = generator.random((count, count))
    path = best_path(weights)
    assert sorted(path) == list(range(count))
    given = weight_of(list(range(count)), weights)
    assert weight_of(path, weights) > given + count / 4, "far better than the given order"
    hidden = generator.permutation(count)
    weights[hidden[:-1], hidden[1:]] = 2
    assert weight_of(best_path(weights), weights) >= 1.6 * (count - 1)


def test_places_that_may_be_asked_together_are() -> None:
    _, answer = perfect(100, seed=0)
    _, _, rounds = run("setwise", extent(100), answer)
    assert len(rounds[0]) > 1, "the lowest nodes of a heap"
    assert len(rounds) <= 21


def one_of(places: Sequence[int]) -> Answering:
    return lambda one: next((index for index, place in enumerate(one) if place in places), nan)


def test_one_clear_winner_is_first_in_every_schedule() -> None:
    for name in METHODS:
        order, _, _ = run(name, extent(30, settle=30), one_of([17]))
        assert order[0] == 17, name
        # Tournaments ask too little to know more than which lost to the winner.
        assert name in ("single-elimination", "swiss") or [place for place in order if place != 17] == sorted(
            set(range(30)) - {17}
        ), name
