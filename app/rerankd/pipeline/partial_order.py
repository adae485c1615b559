"""What answers of a model say about the order of candidates, and what follows from that. Pure.

Candidates are places 0, 1, ... in the order of the first stage. Sets of places are bits of integers.
"""

from collections.abc import Iterable, Iterator, Sequence


class PartialOrder:
    """Answers may contradict one another; what was learnt first stands, so that there is always an order."""

    def __init__(self, candidates: int) -> None:
        self._above = [0] * candidates
        self._below = [0] * candidates

    def __len__(self) -> int:
        return len(self._above)

    def learn_order(self, order: Sequence[int]) -> list[int]:
        """Learn an order of some places and what follows from it; return it as far as it agrees with what was known."""
        agreeing = self._agreeing(order)
        _connect(agreeing, self._above, self._below)
        _connect(agreeing[::-1], self._below, self._above)
        return agreeing

    def learn_best(self, best: int, others: Iterable[int]) -> None:
        """Learn that one is better than each of the others, and nothing about the others among themselves."""
        beaten = [place for place in others if not self.is_above(place, best)]
        below = self._below[best]
        for place in beaten:
            below |= self._below[place] | 1 << place
        above = self._above[best] | 1 << best
        for place in _bits(above):
            self._below[place] |= below
        for place in _bits(below):
            self._above[place] |= above

    def is_above(self, place: int, other: int) -> bool:
        """Whether a place is known to be better than another."""
        return bool(self._below[place] >> other & 1)

    def better_than(self, place: int) -> int:
        """How many are known to be better."""
        return self._above[place].bit_count()

    def worse_than(self, place: int) -> int:
        """How many are known to be worse."""
        return self._below[place].bit_count()

    def ranked(self, places: Iterable[int]) -> list[int]:
        """Places by their expected rank, equal ones as they come: all that is known of a place is how many are better
        and how many worse (Brüggemann et al., "Estimation of Averaged Ranks by a Local Partial Order Model", 2004).
        """
        return sorted(places, key=self._expected)

    def _expected(self, place: int) -> float:
        better, worse = self.better_than(place), self.worse_than(place)
        return (better + 1) / (better + worse + 2)

    def _agreeing(self, order: Sequence[int]) -> list[int]:
        """The same places, as near to this order as what is known allows."""
        left, agreeing = list(order), []
        remaining = sum(1 << place for place in left)
        while left:
            free = next(place for place in left if not self._above[place] & remaining)
            left.remove(free)
            remaining ^= 1 << free
            agreeing.append(free)
        return agreeing


def _connect(order: Sequence[int], above: Sequence[int], below: list[int]) -> None:
    """Note in `below` that all at or above one of these places are above all at or below those that follow it."""
    following = [0]
    for place in order[:0:-1]:
        following.append(following[-1] | below[place] | 1 << place)
    done = 0
    for place, mask in zip(order, reversed(following), strict=True):
        upper = above[place] | 1 << place
        for one in _bits(upper & ~done):
            below[one] |= mask
        done |= upper


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
