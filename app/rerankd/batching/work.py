"""What the batcher moves: items of any payload. It knows what tells them apart, what they cost and which may share a
pass, and nothing of what they hold.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class WorkItem(NamedTuple, Generic[T]):
    """Items of equal `identity` have equal results, so one of them is computed. `cost` is how many tokens the model
    reads. Only items of one `group` share a pass: those of one adapter, say, or of one image size.
    """

    identity: bytes
    cost: int
    group: Hashable
    payload: T


class Work(NamedTuple):
    """Tokens of a request as its engine computes them, and the sum of its items' squared lengths."""

    tokens: int
    squares: float


class Results(Protocol[R_co]):
    """One result for each item of a pass, in its order: a list, or an array with a row for each."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[R_co]: ...


def work_of(lengths: Sequence[int]) -> Work:
    """What items of these lengths cost an engine."""
    return Work(sum(lengths), sum(length * length for length in lengths))
