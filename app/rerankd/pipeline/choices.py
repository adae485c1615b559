"""Schedules of comparisons: which documents a model compares, in which rounds, and what follows from its answers. Pure.

Candidates are places 0, 1, ... in the order of the first stage. A schedule is a generator. It yields rounds, lists of
comparisons that may be asked at the same time, and is sent the answer to each. What it has learnt lies in a standing,
which says an order at any moment. An answer names the best of a comparison and says nothing about the others, so
nothing more is learnt. Where a model says nothing, the order of the first stage stands.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import ceil, isnan, log2
from random import Random
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from rerankd.pipeline.best_path import best_path
from rerankd.pipeline.partial_order import PartialOrder

# Places in the order in which the model reads them.
Comparison = tuple[int, ...]
# Which of a comparison is the best, from 0; of two, the probability that it is the second. NaN: the model did not say.
Answer = float
Rounds = Generator[Sequence[Comparison], Sequence[Answer], None]
Made = TypeVar("Made")
_Asking = Generator[Sequence[Comparison], Sequence[Answer], Made]

_EVEN: Final = 0.5
_SIMULATED: Final = 5


class Standing(Protocol):
    """`settled` are places that no later answer can move, best first."""

    settled: list[int]

    def learn(self, comparison: Comparison, answer: Answer) -> None: ...

    def order(self) -> list[int]:
        """All places, best first, as far as is known by now."""

    def likely(self, places: Sequence[int]) -> int:
        """Which of a few to take for the best where the model does not say."""


class Facts:
    """Learns that one is better than others, and what follows from that."""

    def __init__(self, candidates: int) -> None:
        self.settled: list[int] = []
        self._known = PartialOrder(candidates)

    def learn(self, comparison: Comparison, answer: Answer) -> None:
        best = winner(comparison, answer)
        if best is not None:
            self._known.learn_best(best, [place for place in comparison if place != best])

    def order(self) -> list[int]:
        """The settled ones, then the others by what is known of them."""
        settled = set(self.settled)
        return [*self.settled, *self._known.ranked(place for place in range(len(self._known)) if place not in settled)]

    def likely(self, places: Sequence[int]) -> int:
        """The first in the first stage's order that none of the others is known to beat."""
        return min(place for place in places if not any(self._known.is_above(other, place) for other in places))


class Points:
    """Counts what share of its comparisons of two a place has won."""

    def __init__(self, candidates: int) -> None:
        self.settled: list[int] = []
        self._won = [0.0] * candidates
        self._met: list[list[int]] = [[] for _ in range(candidates)]

    def learn(self, comparison: Comparison, answer: Answer) -> None:
        if isnan(answer):
            return
        first, second = comparison
        for place, other, share in ((first, second, 1 - answer), (second, first, answer)):
            self._won[place] += share
            self._met[place].append(other)

    def likely(self, places: Sequence[int]) -> int:
        return min(places)

    def share(self, place: int) -> float:
        """From 0 to 1; one half for a place that has met none."""
        met = len(self._met[place])
        return self._won[place] / met if met else _EVEN

    def order(self) -> list[int]:
        """By share, then by that of the opponents (Buchholz); or as is settled."""
        if self.settled:
            return self.settled
        shares = [self.share(place) for place in range(len(self._won))]
        strength = [sum(shares[other] for other in met) for met in self._met]
        return sorted(range(len(shares)), key=lambda place: (-shares[place], -strength[place]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How far a schedule goes: it reads `candidates`, at most `window` of them together, settles the first `settle`,
    and plays `rounds` if it is one that has a number of them; 0: as many as find the best.
    """

    candidates: int
    window: int
    settle: int
    rounds: int = 0


def winner(comparison: Comparison, answer: Answer) -> int | None:
    """The place that an answer names; None: it names none, or two are even."""
    if isnan(answer) or (len(comparison) == 2 and answer == _EVEN):
        return None
    return comparison[round(answer)]


def of_both_orders(answer: Answer, reverse: Answer, *, decided: bool = False) -> Answer:
    """The answer to (first, second) from those to it and to (second, first). Where they contradict each other, it is
    even. `decided`: a probability counts as a win of the more probable.
    """
    if decided:
        answer, reverse = _decided(answer), _decided(reverse)
    return (answer + 1 - reverse) / 2


def _decided(answer: Answer) -> Answer:
    return answer if isnan(answer) or answer == _EVEN else float(round(answer))


def setwise(standing: Standing, extent: Extent) -> Rounds:
    """Heap sort whose nodes have `window - 1` children: one comparison finds the best of a node and its children. Ends
    when the first `settle` are taken from the heap.

    Zhuang et al., "A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking with Large Language Models",
    SIGIR 2024. Subtrees of one level are put in order at the same time.
    """
    return _heap_sort(standing, extent, children=extent.window - 1, best_of=_best_of_sets)


def prp_sorting(standing: Standing, extent: Extent) -> Rounds:
    """Heap sort by comparisons of two (PRP-Sorting).

    Qin et al., "Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting", NAACL 2024.
    """
    return _heap_sort(standing, extent, children=2, best_of=_best_by_pairs)


def prp_sliding(standing: Standing, extent: Extent) -> Rounds:
    """Passes of bubble sort from the back, one for each place that is settled (PRP-Sliding-K of the same paper). A pass
    begins when the one before is two places ahead, so that they run at the same time.
    """
    order = list(range(extent.candidates))
    last = len(order) - 2
    passes = min(extent.settle, last + 1)
    for step in range(last + passes):
        begun = [(number, last - step + 2 * number) for number in range(passes)]
        upper = {number: place for number, place in begun if number <= place <= last}
        best = yield from _winners(standing, [(order[place], order[place + 1]) for place in upper.values()])
        for (number, place), one in zip(upper.items(), best, strict=True):
            if one == order[place + 1]:
                order[place : place + 2] = order[place + 1], order[place]
            if place == number:
                standing.settled.append(order[place])


def all_pairs(standing: Standing, extent: Extent) -> Rounds:
    """Every two, in one round."""
    yield from _asked(standing, _every_two(range(extent.candidates)))
    standing.settled = standing.order()


def single_elimination(standing: Standing, extent: Extent) -> Rounds:
    """A bracket in which the first and second of the first stage can meet in the last round only; n - 1 comparisons
    find the best, and the others follow by what is known of them.

    "ArenaRL: Scaling RL for Open-Ended Agents via Tournament-based Relative Ranking", 2026.
    """
    left: list[int | None] = [place if place < extent.candidates else None for place in _bracket(extent.candidates)]
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=True))
        met = [(min(one, other), max(one, other)) for one, other in pairs if one is not None and other is not None]
        best = iter((yield from _winners(standing, met)))
        left = [_through(standing, pair, best) for pair in pairs]
    standing.settled = [place for place in left if place is not None]


def swiss(standing: Points, extent: Extent) -> Rounds:
    """Rounds in which those of equal standing meet, and no two meet twice. As many rounds as halve the unbeaten down to
    one, unless the operator says otherwise.
    """
    met: set[frozenset[int]] = set()
    games = [0] * extent.candidates
    for _ in range(_rounds_of(extent)):
        pairs = _swiss_pairs(standing.order(), met, games)
        met |= {frozenset(pair) for pair in pairs}
        for place in chain.from_iterable(pairs):
            games[place] += 1
        yield from _asked(standing, pairs)
    standing.settled = standing.order()


def tsp(standing: Points, extent: Extent) -> Rounds:
    """Every two in one round, then the order whose neighbours prefer one another most: see `best_path`. It is made for
    decided answers: of probabilities the heaviest path would be one of long leaps.
    """
    pairs = _every_two(range(extent.candidates))
    answers = yield from _asked(standing, pairs)
    order = standing.order()
    row_of = {place: row for row, place in enumerate(order)}
    weights = np.full((len(order), len(order)), _EVEN)
    for (first, second), answer in zip(pairs, answers, strict=True):
        if not isnan(answer):
            weights[row_of[first], row_of[second]] = 1 - answer
            weights[row_of[second], row_of[first]] = answer
    standing.settled = [order[row] for row in best_path(weights)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A schedule, and what it learns in. `pairs`: it compares two at a time, and asks in both orders. `decided`: a
    probability counts as a win. `shares`: scores are shares of what was won; else they only say the order. `most`
    bounds how many comparisons it asks; `varies`: mostly it asks fewer.
    """

    run: Callable[[Any, Extent], Rounds]
    standing: Callable[[int], Standing]
    most: Callable[[Extent], int]
    pairs: bool = True
    decided: bool = False
    shares: bool = False
    varies: bool = False

    def expected(self, extent: Extent) -> int:
        """How many comparisons it should ask."""
        return _simulated(self.run, extent) if self.varies else self.most(extent)


def _all_of(extent: Extent) -> int:
    return extent.candidates * (extent.candidates - 1) // 2


def _of_passes(extent: Extent) -> int:
    return sum(extent.candidates - 1 - number for number in range(min(extent.settle, extent.candidates - 1)))


def _of_rounds(extent: Extent) -> int:
    return min(_all_of(extent), _rounds_of(extent) * (extent.candidates // 2))


def _of_heap(extent: Extent, *, children: int, each: int) -> int:
    heights = [0] * extent.candidates
    for node in reversed(range(1, extent.candidates)):
        parent = (node - 1) // children
        heights[parent] = max(heights[parent], heights[node] + 1)
    return each * (sum(heights) + max(0, min(extent.settle, extent.candidates) - 1) * max(heights, default=0))


METHODS: Final[Mapping[str, Method]] = {
    "setwise": Method(
        run=setwise,
        standing=Facts,
        most=lambda extent: _of_heap(extent, children=extent.window - 1, each=1),
        pairs=False,
        varies=True,
    ),
    "all-pairs": Method(run=all_pairs, standing=Points, most=_all_of, shares=True),
    "prp": Method(run=all_pairs, standing=Points, most=_all_of, shares=True, decided=True),
    "prp-sorting": Method(
        run=prp_sorting, standing=Facts, most=lambda extent: _of_heap(extent, children=2, each=2), varies=True
    ),
    "prp-sliding": Method(run=prp_sliding, standing=Facts, most=_of_passes),
    "single-elimination": Method(run=single_elimination, standing=Facts, most=lambda extent: extent.candidates - 1),
    "swiss": Method(run=swiss, standing=Points, most=_of_rounds),
    "tsp": Method(run=tsp, standing=Points, most=_all_of, decided=True),
}


def _asked(standing: Standing, comparisons: Sequence[Comparison]) -> _Asking[Sequence[Answer]]:
    """One round, and what is learnt of it; none if there is nothing to ask."""
    if not comparisons:
        return []
    answers = yield comparisons
    for comparison, answer in zip(comparisons, answers, strict=True):
        standing.learn(comparison, answer)
    return answers


def _winners(standing: Standing, comparisons: Sequence[Comparison]) -> _Asking[list[int | None]]:
    answers = yield from _asked(standing, comparisons)
    return [winner(comparison, answer) for comparison, answer in zip(comparisons, answers, strict=True)]


_BestOf = Callable[[Standing, Sequence[Sequence[int]]], _Asking[list[int]]]


def _best_of_sets(standing: Standing, groups: Sequence[Sequence[int]]) -> _Asking[list[int]]:
    """The best of each group."""
    best = yield from _winners(standing, [tuple(group) for group in groups])
    return [standing.likely(group) if one is None else one for group, one in zip(groups, best, strict=True)]


def _best_by_pairs(standing: Standing, groups: Sequence[Sequence[int]]) -> _Asking[list[int]]:
    """The same, each of a group against the best before it."""
    best = [group[0] for group in groups]
    for number in range(1, max(map(len, groups))):
        longer = [index for index, group in enumerate(groups) if number < len(group)]
        winners = yield from _winners(standing, [(best[index], groups[index][number]) for index in longer])
        for index, one in zip(longer, winners, strict=True):
            best[index] = standing.likely((best[index], groups[index][number])) if one is None else one
    return best


def _heap_sort(standing: Standing, extent: Extent, *, children: int, best_of: _BestOf) -> Rounds:
    heap = list(range(extent.candidates))
    for level in _levels(len(heap), children):
        yield from _sink(standing, heap, level, children=children, best_of=best_of)
    for _ in range(min(extent.settle, extent.candidates) - 1):
        standing.settled.append(heap[0])
        heap[0] = heap[-1]
        heap.pop()
        yield from _sink(standing, heap, [0], children=children, best_of=best_of)
    standing.settled += heap[:1]


def _levels(nodes: int, children: int) -> list[range]:
    """The nodes of each level of a heap, the lowest first."""
    levels: list[range] = []
    start = end = 0
    while end < nodes:
        start, end = end, end + children ** len(levels)
        levels.append(range(start, min(end, nodes)))
    return levels[::-1]


def _sink(
    standing: Standing, heap: list[int], nodes: Iterable[int], *, children: int, best_of: _BestOf
) -> _Asking[None]:
    """Let what lies at nodes of separate subtrees sink until it is the best of its children."""
    while groups := [
        [node, *range(first, min(first + children, len(heap)))]
        for node in nodes
        if (first := children * node + 1) < len(heap)
    ]:
        members = [[heap[node] for node in group] for group in groups]
        best = yield from best_of(standing, members)
        chosen = [group[places.index(one)] for group, places, one in zip(groups, members, best, strict=True)]
        for group, node in zip(groups, chosen, strict=True):
            heap[group[0]], heap[node] = heap[node], heap[group[0]]
        nodes = [node for group, node in zip(groups, chosen, strict=True) if node != group[0]]


def _every_two(places: Sequence[int]) -> list[Comparison]:
    return [(first, second) for index, first in enumerate(places) for second in places[index + 1 :]]


def _bracket(candidates: int) -> list[int]:
    """The order in which seeds stand in a bracket: the sum of the two that meet is the same for all of a round, as long
    as the better of every two wins.
    """
    seeds = [0]
    while len(seeds) < candidates:
        seeds = [seed for one in seeds for seed in (one, 2 * len(seeds) - 1 - one)]
    return seeds


def _through(standing: Standing, pair: tuple[int | None, int | None], best: Iterator[int | None]) -> int | None:
    """Which of a pair plays on."""
    first, second = pair
    if first is None or second is None:
        return first if second is None else second
    one = next(best)
    return standing.likely((first, second)) if one is None else one


def _rounds_of(extent: Extent) -> int:
    least = ceil(log2(extent.candidates)) if extent.candidates > 1 else 0
    return min(extent.rounds or least, max(0, extent.candidates - 1))


def _swiss_pairs(left: list[int], met: Set[frozenset[int]], games: Sequence[int]) -> list[Comparison]:
    """The pairs of a round, neighbours in a standing as far as they have not met. Of an odd number, the last of those
    with most games has no opponent.
    """
    if len(left) % 2:
        left.remove(max(reversed(left), key=games.__getitem__))
    pairs: list[Comparison] = []
    single: list[int] = []
    while left:
        first = left.pop(0)
        other = next((place for place in left if frozenset((first, place)) not in met), None)
        if other is None:
            single.append(first)
        else:
            left.remove(other)
            pairs.append((first, other))
    _divide(pairs, single, met)
    return pairs


def _divide(pairs: list[Comparison], single: Sequence[int], met: Set[frozenset[int]]) -> None:
    """Give opponents to those that are left over, by dividing pairs that are far behind, as far as that can be."""
    for one, other in zip(single[::2], single[1::2], strict=True):
        for index in reversed(range(len(pairs))):
            first, second = pairs[index]
            ways = (((one, first), (other, second)), ((one, second), (other, first)))
            fresh = next((way for way in ways if all(frozenset(pair) not in met for pair in way)), None)
            if fresh is not None:
                pairs[index : index + 1] = fresh
                break


@lru_cache(maxsize=4096)
def _simulated(run: Callable[[Any, Extent], Rounds], extent: Extent) -> int:
    """How many comparisons a schedule asks a model that knows an order, on average of a few."""
    return ceil(sum(_count(run, extent, Random(seed)) for seed in range(_SIMULATED)) / _SIMULATED)  # noqa: S311 - an estimate


class _Nothing:
    """Learns nothing: for counting."""

    def __init__(self) -> None:
        self.settled: list[int] = []

    def learn(self, comparison: Comparison, answer: Answer) -> None:
        pass

    def order(self) -> list[int]:
        return []

    def likely(self, places: Sequence[int]) -> int:
        return min(places)


def _count(run: Callable[[Any, Extent], Rounds], extent: Extent, random: Random) -> int:
    rank = list(range(extent.candidates))
    random.shuffle(rank)
    schedule = run(_Nothing(), extent)
    asked = 0
    answers: list[Answer] | None = None
    while True:
        try:
            comparisons = next(schedule) if answers is None else schedule.send(answers)
        except StopIteration:
            return asked
        asked += len(comparisons)
        answers = [min(range(len(one)), key=lambda index: rank[one[index]]) for one in comparisons]
