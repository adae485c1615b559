"""Schedules: always a permutation, and the exact beginning where the model's answers fit one order."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rerankd.pipeline.windows import SCHEDULES

Rank = Callable[[Sequence[int]], list[int]]

PARALLEL = ("top-down", "tournament")


def run(
    name: str, count: int, rank: Rank, *, window: int = 20, stride: int = 10, settle: int | None = None
) -> tuple[list[int], list[int]]:
    """The order that a schedule arrives at, and how many windows each of its rounds had."""
    settle = window - stride if settle is None else settle
    told: dict[int, int] = {}

    def settled(place: int, candidates: Sequence[int]) -> None:
        for one, candidate in enumerate(candidates, place):
            assert one not in told, "each place is told once"
            told[one] = candidate

    schedule = SCHEDULES[name](list(range(count)), window=window, stride=stride, settle=settle, settled=settled)
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
        ranked = end.value
    assert {place: ranked[place] for place in told} == told, "what was told is final"
    return ranked, rounds


def perfect(seed: int, count: int) -> tuple[list[int], Rank]:
    """One true order, and a model that knows it."""
    truth = np.random.default_rng(seed).permutation(count).tolist()
    place = {candidate: position for position, candidate in enumerate(truth)}
    return truth, lambda window: sorted(window, key=place.__getitem__)


def every(step: int, start: int) -> Rank:
    """A model whose best are all that come `step` apart: those of one window, where windows are dealt."""
    return lambda window: sorted(window, key=lambda candidate: (candidate % step != start, candidate))


# Models whose answers fit no order, or the order that is worst for a schedule.
STUBBORN: dict[str, Callable[[st.DataObject], Rank]] = {
    "anything": lambda data: lambda window: data.draw(st.permutations(window)),
    "the last one wins": lambda _: lambda window: list(window[::-1]),
    "as they come": lambda _: list,
    "the later ones win": lambda _: lambda window: sorted(window, reverse=True),
    "a circle": lambda _: lambda window: sorted(window, key=lambda candidate: (candidate + 17 * min(window)) % 23),
    "one window holds the best": lambda data: every(data.draw(st.integers(2, 9)), data.draw(st.integers(0, 8))),
    "some order": lambda data: perfect(data.draw(st.integers(0, 2**32 - 1)), 130)[1],
}
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
@given(st.sampled_from(["sliding", "tournament"]), COUNTS, SIZES, st.integers(0, 2**32 - 1))
def test_a_perfect_model_gives_the_exact_best(name: str, count: int, sizes: tuple[int, int], seed: int) -> None:
    window, stride = sizes
    truth, rank = perfect(seed, count)
    ranked, _ = run(name, count, rank, window=window, stride=stride)
    assert ranked[: window - stride] == truth[: window - stride]


@settings(max_examples=40, deadline=None)
@given(COUNTS, SIZES, st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_a_tournament_settles_as_many_as_it_is_asked_for(
    count: int, sizes: tuple[int, int], seed: int, settle: int
) -> None:
    truth, rank = perfect(seed, count)
    ranked, _ = run("tournament", count, rank, window=sizes[0], stride=sizes[1], settle=settle)
    assert ranked[:settle] == truth[:settle]


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(2, 24), st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 23))
def test_top_down_is_exact_where_one_window_holds_all_that_beat_the_pivot(
    count: int, window: int, seed: int, noise: int, settle: int
) -> None:
    settle = min(settle, window - 1)
    arrival = np.random.default_rng(seed).normal(np.arange(count), noise or 1e-9).argsort().tolist()
    above_the_pivot = sorted(arrival[:window])[settle - 1] if count > window else 0
    assume(above_the_pivot <= window)
    ranked, _ = run(
        "top-down", count, lambda asked: sorted(asked, key=arrival.__getitem__), window=window, settle=settle
    )
    assert [arrival[candidate] for candidate in ranked[:settle]] == list(range(min(count, settle)))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(PARALLEL), st.sampled_from(sorted(STUBBORN)), st.integers(1, 10))
def test_parallel_schedules_read_a_hundred_in_three_rounds_and_seven_windows_whatever_the_model_answers(
    data: st.DataObject, name: str, scorer: str, settle: int
) -> None:
    ranked, rounds = run(name, 100, STUBBORN[scorer](data), settle=settle)
    assert sorted(ranked) == list(range(100))
    assert len(rounds) <= 3
    assert sum(rounds) <= 7


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(STUBBORN)), COUNTS, st.integers(2, 24), st.integers(1, 40))
def test_top_down_never_takes_more_than_three_rounds(
    data: st.DataObject, scorer: str, count: int, window: int, settle: int
) -> None:
    ranked, rounds = run("top-down", count, STUBBORN[scorer](data), window=window, settle=settle)
    assert sorted(ranked) == list(range(count))
    assert len(rounds) <= 3


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


def test_a_tournament_in_a_good_initial_order_takes_two_rounds() -> None:
    ranked, rounds = run("tournament", 100, sorted)
    assert ranked[:10] == list(range(10))
    assert rounds == [5, 1]


def test_a_tournament_is_exact_where_one_of_its_windows_holds_all_of_the_best() -> None:
    ranked, rounds = run("tournament", 100, every(5, 3))
    assert ranked[:10] == list(range(3, 53, 5))
    assert rounds == [5, 1, 1]


def test_top_down_reads_the_best_of_each_window_again_where_too_many_beat_the_pivot() -> None:
    ranked, rounds = run("top-down", 100, lambda window: sorted(window, reverse=True))
    assert rounds == [1, 5, 1]
    assert ranked[0] == 99
    assert not set(ranked[:10]) & set(range(20))


def test_fewer_wanted_results_take_fewer_windows() -> None:
    _, rank = perfect(3, 100)
    assert sum(run("tournament", 100, rank, settle=4)[1]) < sum(run("tournament", 100, rank, settle=20)[1])


def test_top_down_takes_two_rounds_where_the_first_order_is_right() -> None:
    assert run("top-down", 100, sorted) == ([*range(100)], [1, 5])


def test_full_leaves_those_beyond_its_window_below() -> None:
    ranked, rounds = run("full", 25, lambda window: list(window[::-1]))
    assert ranked == [*range(19, -1, -1), *range(20, 25)]
    assert rounds == [1]


def test_those_that_stay_below_the_pivot_keep_their_first_order() -> None:
    ranked, _ = run("top-down", 100, lambda window: sorted(window, key=lambda candidate: candidate not in (50, 99)))
    assert ranked[:2] == [50, 99]
    assert ranked[2:] == [candidate for candidate in range(100) if candidate not in (50, 99)]


def test_a_candidate_that_few_were_compared_with_is_placed_by_the_share_of_them_that_it_beat() -> None:
    ranked, rounds = run("tournament", 9, sorted, window=3, stride=2, settle=1)
    assert rounds == [3, 1]
    assert ranked == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_answers_that_contradict_one_another_never_undo_what_was_learnt_first() -> None:
    answers = iter([[2, 0, 4, 6], [5, 1, 7, 3], [0, 2, 1, 5]])
    ranked, _ = run("tournament", 8, lambda window: next(answers, sorted(window)), window=4, stride=2, settle=2)
    assert ranked.index(2) < ranked.index(0) < ranked.index(4) < ranked.index(6)
    assert ranked.index(5) < ranked.index(1) < ranked.index(7) < ranked.index(3)


@pytest.mark.parametrize(
    ("name", "truth", "expected"),
    [
        ("sliding", [0, 1, 2, 3, 4, 5, 6, 7], [(6, [6, 7]), (4, [4, 5])]),
        ("sliding", [0, 1, 2, 3], []),
        ("full", [0, 1, 2, 3, 4, 5], []),
        ("top-down", [5, 4, 7, 6, 0, 1, 2, 3], [(6, [2, 3])]),
        ("tournament", [0, 1, 2, 3], []),
    ],
)
def test_a_schedule_tells_of_places_that_no_later_window_reaches(
    name: str, truth: list[int], expected: list[tuple[int, list[int]]]
) -> None:
    told: list[tuple[int, list[int]]] = []

    def settled(place: int, candidates: Sequence[int]) -> None:
        told.append((place, list(candidates)))

    schedule = SCHEDULES[name](list(range(len(truth))), window=4, stride=2, settle=2, settled=settled)
    windows = next(schedule)
    while windows:
        try:
            windows = schedule.send([sorted(window, key=truth.index) for window in windows])
        except StopIteration:
            break
    assert told == expected
