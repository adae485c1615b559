"""Targets of an evaluation order a query's candidates. One file per kind: in_process, served, biencoder."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from rerankd.domain import RerankRequest

FIRST_STAGE = "first-stage"


@dataclass(frozen=True, slots=True)
class Answer:
    """`order` holds the candidates' positions in the request, best first, `relevance_scores` their scores in it,
    and `values` the raw ones, empty where the target does not tell. `seconds` is how long one caller waited for it. An
    empty order: the query was refused.
    """

    order: Sequence[int]
    relevance_scores: Sequence[float]
    seconds: float
    values: Sequence[float] = ()

    def order_at(self, depth: int) -> Sequence[int]:
        """Of the first `depth` candidates alone: a pair's score does not depend on what it is scored beside."""
        return [index for index in self.order if index < depth]


REFUSED = Answer((), (), 0.0)

Ask = Callable[[RerankRequest], Awaitable[Answer]]


class Ranked(Protocol):
    """An `Answer`, or what is made of one; `order_at` is the order of the first `depth` candidates alone."""

    @property
    def order(self) -> Sequence[int]: ...

    @property
    def relevance_scores(self) -> Sequence[float]: ...

    @property
    def values(self) -> Sequence[float]: ...

    @property
    def seconds(self) -> float: ...

    def order_at(self, depth: int) -> Sequence[int]: ...


class Target(Protocol):
    @property
    def name(self) -> str: ...

    async def identity(self) -> Mapping[str, Any]:
        """Everything that changes an answer, as JSON.

        Raises:
            ConfigError: it is not there.
        """

    def opened(self) -> AbstractAsyncContextManager[Ask]:
        """What answers, while the context lasts. Answers may raise `ConfigError` or `RerankError`; a query that cannot
        be read, such as one longer than the model takes, is `REFUSED`.
        """
