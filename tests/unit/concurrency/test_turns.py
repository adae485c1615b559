"""Whose turn it is."""

from collections.abc import Sequence

import pytest

from rerankd.concurrency.turns import Share, TurnQueue


def _order(queue: TurnQueue, shares: Sequence[Share]) -> list[int]:
    """In which order turns are given, one place at a time."""
    for number, share in enumerate(shares):
        queue.add(number, share)
    return _drained(queue)


def _drained(queue: TurnQueue, *, most: int = 1000) -> list[int]:
    given: list[int] = []
    while len(given) < most and (number := queue.next()) is not None:
        given.append(number)
        queue.leave(number)
    return given


def test_turns_of_one_caller_and_size_are_given_in_order_of_arrival() -> None:
    assert _order(TurnQueue(1), [Share(left=100)] * 6) == [0, 1, 2, 3, 4, 5]


def test_callers_take_turns_whatever_one_of_them_asks_for() -> None:
    shares = [Share(caller="heavy", cost=10)] * 6 + [Share(caller="light", cost=10)] * 2
    assert _order(TurnQueue(1), shares) == [0, 6, 1, 7, 2, 3, 4, 5]


def test_a_turn_costs_what_it_is_long() -> None:
    shares = [Share(caller="long", cost=30)] * 3 + [Share(caller="short", cost=10)] * 4
    assert _order(TurnQueue(1), shares) == [0, 3, 4, 5, 1, 6, 2]


def test_of_one_caller_short_requests_overtake_long_ones_and_one_turn_in_four_is_the_oldest() -> None:
    long, short = Share(left=1_000_000), Share(left=1_000)
    assert _order(TurnQueue(1), [long, long, *[short] * 4]) == [2, 3, 4, 0, 5, 1]


def test_urgent_turns_go_first() -> None:
    shares = [Share(caller="a"), Share(caller="a", urgent=True), Share(caller="b"), Share(urgent=True)]
    assert _order(TurnQueue(1), shares)[:2] == [1, 3]


def test_a_caller_holds_no_more_places_than_its_own() -> None:
    queue = TurnQueue(3, per_caller=2)
    for number in range(4):
        queue.add(number, Share(caller="heavy"))
    assert [queue.next() for _ in range(3)] == [0, 1, None]
    queue.add(4, Share(caller="light"))
    assert queue.next() == 4
    queue.leave(4)
    assert queue.next() is None
    queue.leave(0)
    queue.leave(0)
    assert [queue.next(), queue.next()] == [2, None]


def test_a_caller_that_was_idle_catches_up_by_its_credit_at_most() -> None:
    queue = TurnQueue(1)
    for number in range(100):
        queue.add(number, Share(caller="always", cost=100_000))
    assert max(_drained(queue, most=50)) < 100
    for number in range(100, 150):
        queue.add(number, Share(caller="away", cost=100_000))
    first = _drained(queue, most=20)
    assert 5 <= next(place for place, number in enumerate(first) if number < 100) <= 7
    assert sum(number < 100 for number in first[8:]) == pytest.approx(6, abs=1)


def test_a_withdrawn_request_gets_no_turn() -> None:
    queue = TurnQueue(1)
    for number in range(3):
        queue.add(number, Share())
    assert queue.next() == 0
    queue.withdraw(1)
    queue.withdraw(1)
    queue.withdraw(0)
    assert queue.next() is None, "a turn that was given is not over because nobody wants it"
    queue.leave(0)
    assert queue.next() == 2


def test_nothing_is_remembered_of_callers_that_are_gone() -> None:
    queue = TurnQueue(1)
    for number in range(1000):
        queue.add(number, Share(caller=f"caller {number}"))
        if number % 2:
            queue.withdraw(number)
    assert queue.known_callers <= 1000
    assert len(_drained(queue)) == 500
    assert queue.known_callers == 0


def test_a_caller_that_regained_its_credit_is_forgotten_though_others_are_busy() -> None:
    queue = TurnQueue(1)
    queue.add(0, Share(caller="once", cost=10))
    queue.add(1, Share(caller="always", cost=400_000))
    assert queue.next() == 0
    queue.leave(0)
    for number in range(2, 6):
        queue.add(number, Share(caller="always", cost=400_000))
        given = queue.next()
        assert given is not None
        queue.leave(given)
    assert queue.known_callers == 1
