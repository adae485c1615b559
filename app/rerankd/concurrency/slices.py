"""Work in slices: a generator that yields wherever other work may run, and returns its result."""

from collections.abc import Callable, Generator
from time import perf_counter
from typing import Final, TypeVar

T = TypeVar("T")
Sliced = Generator[None, None, T]

# How long a slice may hold the event loop.
SLICE_S: Final = 0.002


def run_to_end(work: Sliced[T]) -> T:
    try:
        while True:
            next(work)
    except StopIteration as end:
        result: T = end.value
        return result


def run_slice(work: Sliced[T], *, clock: Callable[[], float] = perf_counter, slice_s: float = SLICE_S) -> None:
    """Work until the time slice is over, but do one step at least.

    Raises:
        StopIteration: the work is done; its value is the result.
    """
    until = clock() + slice_s
    next(work)
    while clock() < until:
        next(work)
