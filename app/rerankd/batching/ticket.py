"""An admitted request's way to the engine: what it should cost is reserved, then its items are computed.

Stages submit work through an `Intake`. The batcher of this process is one; where front-end processes share a scheduler
(`rerankd.serving.processes`), its client there is another.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rerankd.batching.admission import Estimate, Forecast, TextLengths, Tokenized, is_surprising
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


class Reservation(Protocol[T, R]):
    """What an admitted request holds of the queue."""

    def hold(self, tokens: int) -> None:
        """Reserve this many tokens from now on, in place of those before."""

    def check_again(self, work: Work, admitted: Work) -> None:
        """Check a request that turned out to be more than it was admitted for. What it held is released.

        Raises:
            Overloaded, DeadlineExceeded, Unavailable: as for a request that comes now.
        """

    def take_back(self, tokens: int) -> None:
        """Expect that much less of the caller: its request comes again."""

    async def serve(self, items: list[WorkItem[T]]) -> Outcome[R]:
        """Compute items; nothing is reserved any more. See `Ticket.run` for what it raises."""


class Ticket(Generic[T, R]):
    """An admitted request. What it should cost is reserved until its items are queued, and is corrected by each part of
    it that is tokenized.
    """

    def __init__(self, lengths: TextLengths, reservation: Reservation[T, R], terms: Terms, forecast: Forecast) -> None:
        self._lengths = lengths
        self._reservation = reservation
        self._terms = terms
        self._forecast = forecast
        self._admitted = forecast.work
        self._begun = False
        self._reserve(forecast.work.tokens)

    def correct(self, part: Tokenized) -> None:
        """Count a part of the request as what it turned out to be. If the whole is much more than was admitted, check
        it again; not once the engine has begun with it.

        Raises:
            Overloaded, DeadlineExceeded: as for a request that comes now.
            RateLimited: the caller's quota does not last for it.
        """
        self._terms.meter.read(part.tokens)
        self._lengths.learn(caller=self._terms.caller, characters=part.whole_characters, tokens=part.whole_tokens)
        if self._begun:
            return
        self._forecast.correct(part)
        work = self._forecast.work
        if is_surprising(work, admitted=self._admitted):
            self._reservation.check_again(work, self._admitted)
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
        return await self._reservation.serve(items)

    def release(self) -> None:
        """Reserve nothing more."""
        self._reserve(0)

    def release_to_ask_again(self) -> None:
        """Release, so that the request asks for what is left of it as if it had not asked yet."""
        self.release()
        if not self._terms.background:
            self._reservation.take_back(self._admitted.tokens)

    def _reserve(self, tokens: int) -> None:
        if not self._terms.background:  # nobody waits for it
            self._reservation.hold(tokens)


class Intake(Protocol[T, R]):
    """Where stages submit a model's work."""

    @property
    def lengths(self) -> TextLengths:
        """How long texts are expected to be."""

    def admit(self, estimate: Estimate, terms: Terms) -> AbstractAsyncContextManager[Ticket[T, R]]:
        """Admit a request, or refuse it, before its texts are tokenized.

        Raises:
            Overloaded: too much waits, or the deadline cannot be met now; `retry_after_s` says when to come back.
            DeadlineExceeded: the deadline could not be met by an idle server either.
            Unavailable: the model was stopped.
        """

    async def fits(self, estimate: Estimate, terms: Terms) -> bool:
        """Whether a request would be answered whole before its deadline, as far as can be known now."""

    def lengths_of(self, items: Sequence[WorkItem[T]]) -> list[int]:
        """In tokens, as the engine computes them."""

    def alive_at(self) -> float:
        """When the engine was last seen to work, on the clock of `time.perf_counter`."""
