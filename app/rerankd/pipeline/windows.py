"""Schedules: which windows of candidates a listwise model reads, in which order, and what follows from its answers.

Pure: no model, asyncio or clock. A schedule is a generator. It yields rounds, lists of windows that may be ranked at
the same time; it is sent the candidates of each window in order of relevance; and it returns all candidates, best
first. The answer is a permutation whatever it is sent; answers that fit one true order give exactly its first `settle`
candidates, but for the limits that `full` and `top_down` name. While it goes on, it may tell `settled` of final places.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Final

from rerankd.domain import Settled
from rerankd.pipeline.partial_order import PartialOrder

Window = list[int]
Schedule = Generator[list[Window], Sequence[Sequence[int]], list[int]]


def sliding(
    candidates: Sequence[int], *, window: int, stride: int, settle: int, settled: Settled | None = None
) -> Schedule:
    """From the back to the front, each window's order written back: one serial pass after another.

    Sun et al., "Is ChatGPT Good at Search?", 2023. Settles the first `window - stride`, however few are asked for. The
    last places are told first: each window but the last settles those that the next one does not reach.
    """
    del settle
    ranked = list(candidates)
    end = len(ranked)
    while end > 0:
        start = max(0, end - window)
        (order,) = yield [ranked[start:end]]
        ranked[start:end] = order
        reached = 0 if start == 0 else end - stride
        if settled is not None and reached:
            settled(reached, ranked[reached:end])
        end = reached
    return ranked


def full(
    candidates: Sequence[int], *, window: int, stride: int, settle: int, settled: Settled | None = None
) -> Schedule:
    """All candidates in one window, those that it does not hold below."""
    del stride, settle, settled
    if not candidates:
        return []
    (order,) = yield [list(candidates[:window])]
    return [*order, *candidates[window:]]


def top_down(
    candidates: Sequence[int], *, window: int, stride: int, settle: int, settled: Settled | None = None
) -> Schedule:
    """The first window gives a pivot, all others are compared with it at once, and the best of them meet in a last one.

    Parry et al., "Top-Down Partitioning for Efficient List-Wise Ranking", 2024, with a budget of one window for what
    beat the pivot: three rounds at most whatever the model answers, two where the candidates come in a good order.
    Where more than a window of candidates may still be among the first `settle` after two rounds, only the best of each
    window are read again, and the others follow: the first `settle` may then be wrong.
    """
    del stride
    if not candidates:
        return []
    known, places = _Known(candidates), range(len(candidates))
    (first,) = yield from known.ask([places[:window]])
    others = places[window:]
    if not others:
        return known.ranked(first)
    pivot = first[min(settle, window) - 1]
    chunks = even_chunks(others, ceil(len(others) / (window - 1)))
    orders = yield from known.ask([[pivot, *chunk] for chunk in chunks])
    below = [place for order in (first, *orders) for place in order[order.index(pivot) + 1 :]]
    behind = [candidates[place] for place in below]
    if open_places := known.unsettled(settle):
        if settled is not None and behind:
            settled(len(candidates) - len(behind), behind)
        yield from known.ask([open_places[:window]])
    return [*known.ranked(sorted({*places} - {*below})), *behind]


def tournament(
    candidates: Sequence[int], *, window: int, stride: int, settle: int, settled: Settled | None = None
) -> Schedule:
    """All windows at once, then the best of each against one another, with everything learnt so far kept.

    A single-token pass orders its whole window, and what follows from several orders is known without asking: of 100
    candidates in windows of 20, the first 10 are settled by 6 windows in 2 rounds, or 7 in 3, whatever the answers.
    """
    del stride
    known = _Known(candidates)
    while open_places := known.unsettled(settle):
        if settled is not None:
            known.tell(settled)
        best = known.better_than(open_places[0])
        leaders = sum(known.better_than(place) == best for place in open_places)
        count = ceil(leaders / window)
        yield from known.ask(_dealt(open_places[: count * window], count))
    return known.ranked(range(len(candidates)))


SCHEDULES: Final[Mapping[str, Callable[..., Schedule]]] = {
    "sliding": sliding,
    "full": full,
    "top-down": top_down,
    "tournament": tournament,
}


class _Known:
    """What is known about the order of candidates, by place in their first order."""

    def __init__(self, candidates: Sequence[int]) -> None:
        self._candidates = candidates
        self._order = PartialOrder(len(candidates))
        self._told: set[int] = set()
        self.better_than = self._order.better_than

    def ask(
        self, windows: Sequence[Sequence[int]]
    ) -> Generator[list[Window], Sequence[Sequence[int]], list[list[int]]]:
        """One round: windows of places go out as candidates, and the order of each is learnt, and returned."""
        orders = yield [[self._candidates[place] for place in places] for places in windows]
        learnt = []
        for places, order in zip(windows, orders, strict=True):
            place_of = {self._candidates[place]: place for place in places}
            learnt.append(self._order.learn_order([place_of[candidate] for candidate in order]))
        return learnt

    def unsettled(self, settle: int) -> list[int]:
        """Places that may be among the first `settle` and are not known against all others, the best known first."""
        found = [
            place
            for place in range(len(self._candidates))
            if self.better_than(place) < settle
            and self.better_than(place) + self._order.worse_than(place) < len(self._candidates) - 1
        ]
        return sorted(found, key=self.better_than)

    def tell(self, settled: Settled) -> None:
        """Name the candidates whose place against all others is known, and was not named before."""
        for place, candidate in enumerate(self._candidates):
            better = self.better_than(place)
            if place not in self._told and better + self._order.worse_than(place) == len(self._candidates) - 1:
                self._told.add(place)
                settled(better, [candidate])

    def ranked(self, places: Iterable[int]) -> list[int]:
        """The candidates at these places by their expected rank."""
        return [self._candidates[place] for place in self._order.ranked(places)]


def even_chunks(items: Sequence[int], count: int) -> list[Sequence[int]]:
    """`count` pieces in order whose lengths differ by one at most, so that they batch without padding."""
    size, longer = divmod(len(items), count)
    ends = [size * number + min(number, longer) for number in range(count + 1)]
    return [items[start:end] for start, end in pairwise(ends)]


def _dealt(items: Sequence[int], count: int) -> list[Sequence[int]]:
    """`count` pieces that take turns, as cards are dealt: where the order says anything, none holds all of the best."""
    return [items[number::count] for number in range(count)]
