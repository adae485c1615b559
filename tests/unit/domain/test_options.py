"""What callers wish stays within what the operator planned."""

import pytest

from rerankd.domain import Aggregation, PassagePlan, PassageWishes, WindowPlan, WindowWishes
from rerankd.errors import InvalidRequest

_PASSAGES = PassagePlan(tokens=256, overlap=32, max_passages=8, aggregation=Aggregation.MEAN, top_k=2)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (PassageWishes(), _PASSAGES),
        (
            PassageWishes(tokens=64, overlap=0, max_passages=3, aggregation=Aggregation.FIRST, top_k=5),
            PassagePlan(tokens=64, overlap=0, max_passages=3, aggregation=Aggregation.FIRST, top_k=5),
        ),
        (
            PassageWishes(max_passages=9),
            PassagePlan(tokens=256, overlap=32, max_passages=8, aggregation=Aggregation.MEAN, top_k=2),
        ),
    ],
)
def test_passages_are_as_the_caller_wishes_but_never_more(wishes: PassageWishes, expected: PassagePlan) -> None:
    assert wishes.within(_PASSAGES) == expected


@pytest.mark.parametrize(
    ("plan", "room", "length", "overlap"),
    [
        (PassagePlan(), 100, 100, 25),
        (PassagePlan(tokens=64), 100, 64, 16),
        (PassagePlan(tokens=128), 100, 100, 25),
        (PassagePlan(tokens=64, overlap=0), 100, 64, 0),
        (PassagePlan(tokens=64, overlap=32), 40, 40, 20),
    ],
)
def test_passages_fit_beside_the_query(plan: PassagePlan, room: int, length: int, overlap: int) -> None:
    assert plan.length(room=room) == length
    assert plan.overlap_of(length) == overlap


def test_wishes_change_a_plan_within_its_bounds() -> None:
    plan = WindowPlan(window=20, stride=10, schedule="sliding", depth=100)
    assert WindowWishes().within(plan) == plan
    wishes = WindowWishes(window=8, depth=50, schedule="tournament")
    assert wishes.within(plan) == WindowPlan(window=8, stride=7, schedule="tournament", depth=50)


@pytest.mark.parametrize(
    ("window", "stride", "least"), [(None, 9, 10), (10, 4, 5), (5, 2, 3), (2, 0, 1), (None, 1, 10)]
)
def test_no_stride_reads_a_candidate_more_often_than_the_operators(window: int | None, stride: int, least: int) -> None:
    plan = WindowPlan(window=20, stride=10, schedule="sliding", depth=100)
    with pytest.raises(InvalidRequest, match=f"stride must be from {least} to {(window or 20) - 1} for this model"):
        WindowWishes(window=window, stride=stride).within(plan)
    assert WindowWishes(window=window, stride=least).within(plan).stride == least


@pytest.mark.parametrize(
    ("wishes", "problem"),
    [
        (WindowWishes(window=21), "window must be from 2 to 20 for this model; got 21"),
        (WindowWishes(window=1), "window must be from 2 to 20 for this model; got 1"),
        (WindowWishes(depth=0), "depth must be from 1 to 100 for this model; got 0"),
        (WindowWishes(depth=101), "depth must be from 1 to 100 for this model; got 101"),
    ],
)
def test_a_wish_out_of_bounds_is_refused_with_the_bounds(wishes: WindowWishes, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        wishes.within(WindowPlan(window=20, stride=10, schedule="sliding", depth=100))


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 2, 2], [0, 1, 3], [-1, 0, 1]])
def test_an_order_names_each_document_once(order: list[int]) -> None:
    assert list(WindowWishes().order_of(3)) == [0, 1, 2]
    assert list(WindowWishes(initial_order=[2, 0, 1]).order_of(3)) == [2, 0, 1]
    with pytest.raises(InvalidRequest, match="each of the document indices 0 to 2 once"):
        WindowWishes(initial_order=order).order_of(3)
