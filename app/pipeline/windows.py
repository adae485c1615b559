"""Schedules: which windows of candidates a listwise model reads, in which order, and what follows from its answers.

Pure: no model, asyncio or clock. A schedule is a generator. It yields rounds, lists of windows that may be ranked at
the same time; it is sent the candidates of each window in order of relevance; and it returns all candidates, best
first. The answer is a permutation whatever it is sent; answers that fit one true order give exactly its first `settle`
candidates.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Final

Window = list[int]
Schedule = Generator[list[Window], Sequence[Sequence[int]], list[int]]


def sliding(candidates: Sequence[int], *, window: int, stride: int, settle: int) -> Schedule:
    """From the back to the front, each window's order written back: one serial pass after another.

    Sun et al., "Is ChatGPT Good at Search?", 2023. Settles the first `window - stride`, however few are asked for.
    """
    del settle
    ranked = list(candidates)
    end = len(ranked)
    while end > 0:
        start = max(0, end - window)
        (order,) = yield [ranked[start:end]]
        ranked[start:end] = order
        end = 0 if start == 0 else end - stride
    return ranked


def full(candidates: Sequence[int], *, window: int, stride: int, settle: int) -> Schedule:
    """All candidates in one window, those that it does not hold below."""
    del stride, settle
    if not candidates:
        return []
    (order,) = yield [list(candidates[:window])]
    return [*order, *candidates[window:]]


def top_down(candidates: Sequence[int], *, window: int, stride: int, settle: int) -> Schedule:
    """The first window gives a pivot, all others are compared with it at once, and those above it go on.

    Parry et al., "Top-Down Partitioning for Efficient List-Wise Ranking", 2024. Two or three passes where the
    candidates come in a good order, more where they do not.
    """
    if len(candidates) <= window:
        return (yield from full(candidates, window=window, stride=stride, settle=settle))
    (first,) = yield [list(candidates[:window])]
    pivot = first[settle - 1] if settle < window else first[window // 2]
    chunks = _chunks(candidates[window:], ceil((len(candidates) - window) / (window - 1)))
    orders = yield [[pivot, *chunk] for chunk in chunks]
    better = list(first[: first.index(pivot)])
    worse = list(first[first.index(pivot) + 1 :])
    known = len(better)
    for order in orders:
        better += order[: order.index(pivot)]
        worse += order[order.index(pivot) + 1 :]
    if len(better) > known:
        better = yield from top_down(better, window=window, stride=stride, settle=settle)
    missing = settle - len(better) - 1
    if missing > 0:
        worse = yield from top_down(worse, window=window, stride=stride, settle=missing)
    return [*better, pivot, *worse]


def tournament(candidates: Sequence[int], *, window: int, stride: int, settle: int) -> Schedule:
    """All windows at once, then the best of each against one another, with everything learnt so far kept.

    A single-token pass orders its whole window, and what follows from several orders is known without asking: of 100
    candidates in windows of 20, the first 10 are settled by 7 windows in 3 rounds.
    """
    del stride
    known = _Known(len(candidates))
    while open_places := known.unsettled(settle):
        best = known.better_than(open_places[0])
        leaders = sum(known.better_than(place) == best for place in open_places)
        count = ceil(leaders / window)
        windows = _chunks(open_places[: count * window], count)
        orders = yield [[candidates[place] for place in places] for places in windows]
        for places, order in zip(windows, orders, strict=True):
            place_of = {candidates[place]: place for place in places}
            known.learn([place_of[candidate] for candidate in order])
    return [candidates[place] for place in known.order()]


SCHEDULES: Final[Mapping[str, Callable[..., Schedule]]] = {
    "sliding": sliding,
    "full": full,
    "top-down": top_down,
    "tournament": tournament,
}


class _Known:
    """What is known about the order of candidates, by place in their first order: sets of places as bits of integers.

    Answers of a model may contradict one another; what was learnt first stands, so that there is always an order.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._above = [0] * count
        self._below = [0] * count

    def better_than(self, place: int) -> int:
        """How many are known to be better."""
        return self._above[place].bit_count()

    def unsettled(self, settle: int) -> list[int]:
        """Places that may be among the first `settle` and are not known against all others, the best known first."""
        found = [
            place
            for place in range(self._count)
            if self.better_than(place) < settle
            and self.better_than(place) + self._below[place].bit_count() < self._count - 1
        ]
        return sorted(found, key=self.better_than)

    def order(self) -> list[int]:
        """All places: no known worse one before a better one."""
        return sorted(range(self._count), key=self.better_than)

    def learn(self, order: Sequence[int]) -> None:
        """Learn one window's order, and what follows from it."""
        agreeing = self._agreeing(order)
        for better, worse in pairwise(agreeing):
            if not self._below[better] >> worse & 1:
                self._add(better, worse)

    def _add(self, better: int, worse: int) -> None:
        up = self._above[better] | 1 << better
        down = self._below[worse] | 1 << worse
        for place in _bits(up):
            self._below[place] |= down
        for place in _bits(down):
            self._above[place] |= up

    def _agreeing(self, order: Sequence[int]) -> list[int]:
        """The same places, as near to this order as what is known allows."""
        left, agreeing = list(order), []
        while left:
            remaining = sum(1 << place for place in left)
            free = next(place for place in left if not self._above[place] & remaining)
            left.remove(free)
            agreeing.append(free)
        return agreeing


def _bits(mask: int) -> list[int]:
    return [place for place in range(mask.bit_length()) if mask >> place & 1]


def _chunks(items: Sequence[int], count: int) -> list[Window]:
    """`count` pieces in order whose lengths differ by one at most, so that they batch without padding."""
    size, longer = divmod(len(items), count)
    ends = [size * number + min(number, longer) for number in range(count + 1)]
    return [list(items[start:end]) for start, end in pairwise(ends)]
