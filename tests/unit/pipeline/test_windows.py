"""Schedules: always a permutation, and the exact beginning where the model's answers fit one order."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.pipeline.windows import SCHEDULES

Rank = Callable[[Sequence[int]], list[int]]

PARALLEL = ("top-down", "tournament")


def run(
    name: str, count: int, rank: Rank, *, window: int = 20, stride: int = 10, settle: int | None = None
) -> tuple[list[int], list[int]]:
    """The order that a schedule arrives at, and how many windows each of its rounds had."""
    settle = window - stride if settle is None else settle
    schedule = SCHEDULES[name](list(range(count)), window=window, stride=stride, settle=settle)
    rounds = []
    try:
        windows = next(schedule)
        while True:
            for one in windows:
                assert 0 < len(one) <= window
                assert len(set(one)) == len(one)
            rounds.append(len(windows))
            assert len(rounds) < 10 * count + 10, "it does not end"
            windows = schedule.send([rank(one) for one in windows])
    except StopIteration as end:
        return end.value, rounds


def perfect(seed: int, count: int) -> tuple[list[int], Rank]:
    """One true order, and a model that knows it."""
    truth = np.random.default_rng(seed).permutation(count).tolist()
    place = {candidate: position for position, candidate in enumerate(truth)}
    return truth, lambda window: sorted(window, key=place.__getitem__)


SIZES = st.tuples(st.integers(2, 24), st.integers(1, 23)).filter(lambda sizes: sizes[1] < sizes[0])
COUNTS = st.one_of(st.sampled_from([0, 1, 2, 3, 5, 7, 19, 20, 21, 40, 41, 97, 100, 101]), st.integers(0, 130))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), COUNTS, SIZES, st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_whatever_a_model_answers_the_result_is_a_permutation(
    name: str, count: int, sizes: tuple[int, int], seed: int, settle: int
) -> None:
    generator = np.random.default_rng(seed)
    ranked, _ = run(
        name,
        count,
        lambda window: generator.permutation(window).tolist(),
        window=sizes[0],
        stride=sizes[1],
        settle=settle,
    )
    assert sorted(ranked) == list(range(count))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["sliding", *PARALLEL]), COUNTS, SIZES, st.integers(0, 2**32 - 1))
def test_a_perfect_model_gives_the_exact_best(name: str, count: int, sizes: tuple[int, int], seed: int) -> None:
    window, stride = sizes
    truth, rank = perfect(seed, count)
    ranked, _ = run(name, count, rank, window=window, stride=stride)
    assert ranked[: window - stride] == truth[: window - stride]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PARALLEL), COUNTS, SIZES, st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_parallel_schedules_settle_as_many_as_they_are_asked_for(
    name: str, count: int, sizes: tuple[int, int], seed: int, settle: int
) -> None:
    truth, rank = perfect(seed, count)
    ranked, _ = run(name, count, rank, window=sizes[0], stride=sizes[1], settle=settle)
    assert ranked[:settle] == truth[:settle]


@pytest.mark.parametrize(
    ("name", "count", "rounds"),
    [
        ("sliding", 0, []),
        ("sliding", 1, [1]),
        ("sliding", 10, [1]),
        ("sliding", 20, [1]),
        ("sliding", 21, [1, 1]),
        ("sliding", 97, [1] * 9),
        ("sliding", 100, [1] * 9),
        ("sliding", 101, [1] * 10),
        ("full", 0, []),
        ("full", 20, [1]),
        ("top-down", 0, []),
        ("top-down", 20, [1]),
        ("tournament", 0, []),
        ("tournament", 1, []),
        ("tournament", 20, [1]),
    ],
)
def test_a_schedule_asks_as_often_as_it_must(name: str, count: int, rounds: list[int]) -> None:
    _, rank = perfect(0, count)
    assert run(name, count, rank)[1] == rounds


def test_a_tournament_of_a_hundred_takes_three_rounds_and_seven_windows_at_most() -> None:
    for seed in range(100):
        truth, rank = perfect(seed, 100)
        ranked, rounds = run("tournament", 100, rank)
        assert ranked[:10] == truth[:10]
        assert len(rounds) <= 3
        assert sum(rounds) <= 7


def test_fewer_wanted_results_take_fewer_windows() -> None:
    _, rank = perfect(3, 100)
    assert sum(run("tournament", 100, rank, settle=4)[1]) < sum(run("tournament", 100, rank, settle=20)[1])


def test_top_down_takes_two_rounds_where_the_first_order_is_right() -> None:
    assert run("top-down", 100, sorted) == ([*range(100)], [1, 5])


def test_full_leaves_those_beyond_its_window_below() -> None:
    ranked, rounds = run("full", 25, lambda window: list(window[::-1]))
    assert ranked == [*range(19, -1, -1), *range(20, 25)]
    assert rounds == [1]


def test_answers_that_contradict_one_another_never_undo_what_was_learnt_first() -> None:
    answers = iter([[1, 0, 2, 3], [5, 4, 7, 6], [0, 1, 4, 5]])
    ranked, _ = run("tournament", 8, lambda window: next(answers, sorted(window)), window=4, stride=2, settle=2)
    assert ranked.index(1) < ranked.index(0)
    assert ranked.index(5) < ranked.index(4)
