"""Work in steps: a generator that yields wherever others may have their turn, and returns what it made."""

from collections.abc import Callable, Generator
from time import perf_counter
from typing import Final, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]

# How long the event loop is held by the steps of one turn.
SLICE_S: Final = 0.002


def drained(steps: Steps[T]) -> T:
    """Do all steps at once."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        made: T = end.value
        return made


def advance(steps: Steps[T], *, clock: Callable[[], float] = perf_counter, slice_s: float = SLICE_S) -> None:
    """Do steps until a slice of time is over, but one at least.

    Raises:
        StopIteration: they came to their end; its value is what they made.
    """
    until = clock() + slice_s
    next(steps)
    while clock() < until:
        next(steps)
