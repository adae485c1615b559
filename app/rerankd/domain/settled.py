"""Tells which documents have their final places while a request is still worked on."""

from collections.abc import Callable, Sequence

from rerankd.domain.arrays import IntArray

# Called with a place, from 0, and the indices of the documents at it and behind it: nothing can move them any more.
# Each place is named at most once. Only an error of the request takes it back.
Settled = Callable[[int, Sequence[int]], None]


def settled_of(settled: Settled | None, positions: IntArray) -> Settled | None:
    """The same for those who know only the documents at these positions, which are to be the first of all."""
    if settled is None:
        return None

    def tell(place: int, indices: Sequence[int]) -> None:
        settled(place, positions[list(indices)].tolist())

    return tell
