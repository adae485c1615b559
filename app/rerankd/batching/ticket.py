"""An admitted request's way through the batcher: what it should cost is reserved, then its items are computed."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rerankd.batching.admission import Admission, Forecast, Tokenized
from rerankd.batching.work import Work, WorkItem
from rerankd.domain import Terms

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[R]):
    """`results` are in the order of the items. Where the deadline came before the last of them, they are those of the
    items at the places `finished`; None: all have one.

    Times are wall seconds: until the first of them went to the engine, and from then to the last one's result.
    """

    results: Sequence[R]
    finished: Sequence[int] | None
    queue_s: float
    inference_s: float


# Refuses a request or does nothing; the last work is what one that is checked again was admitted for.
Check = Callable[[Work, Terms, Work | None], None]
Serve = Callable[[list[WorkItem[T]], Terms], Awaitable[Outcome[R]]]


class Ticket(Generic[T, R]):
    """An admitted request. What it should cost is reserved until its items are queued, and is corrected by each part of
    it that is tokenized.
    """

    def __init__(
        self, admission: Admission, check: Check, serve: Serve[T, R], terms: Terms, forecast: Forecast
    ) -> None:
        self._admission = admission
        self._check = check
        self._serve = serve
        self._terms = terms
        self._forecast = forecast
        self._admitted = forecast.work
        self._begun = False
        self._reserved = 0
        self._reserve(forecast.work.tokens)

    def correct(self, part: Tokenized) -> None:
        """Count a part of the request as what it turned out to be. If the whole is much more than was admitted, check
        it again; not once the engine has begun with it.

        Raises:
            Overloaded, DeadlineExceeded: as for a request that comes now.
            RateLimited: the caller's quota does not last for it.
        """
        self._terms.meter.read(part.tokens)
        self._admission.learn_length(
            caller=self._terms.caller, characters=part.whole_characters, tokens=part.whole_tokens
        )
        if self._begun:
            return
        self._forecast.correct(part)
        work = self._forecast.work
        if self._admission.is_surprising(work, admitted=self._admitted):
            self.release()
            self._check(work, self._terms, self._admitted)
            self._admitted = work
        self._reserve(work.tokens)

    async def run(self, items: list[WorkItem[T]]) -> Outcome[R]:
        """Compute all items; a request may do so several times. If the caller is cancelled, items that still wait are
        dropped. The list is the batcher's from then on: it empties it.

        Raises:
            DeadlineExceeded: the deadline came before the last result.
            ScoringFailed: the engine failed on one of these items.
            Unavailable: the model was stopped.
        """
        self._begun = True
        self.release()
        return await self._serve(items, self._terms)

    def release(self) -> None:
        """Reserve nothing more."""
        self._reserve(0)

    def release_to_ask_again(self) -> None:
        """Release, so that the request asks for what is left of it as if it had not asked yet."""
        self.release()
        if not self._terms.background:
            self._admission.take_back(self._terms.caller, self._admitted.tokens)

    def _reserve(self, tokens: int) -> None:
        if self._terms.background:
            return  # nobody waits for it
        self._admission.reserve(self._terms.caller, tokens - self._reserved)
        self._reserved = tokens
