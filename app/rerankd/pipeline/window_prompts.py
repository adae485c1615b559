"""The prompts of one request that show several documents each: written, run in one trip, and what they cost."""

from collections.abc import Sequence
from time import perf_counter
from typing import Generic, Protocol, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.ticket import Intake, Outcome, Ticket
from rerankd.batching.work import WorkItem
from rerankd.concurrency.gathering import gather_or_cancel
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, ScoreOptions, Scores, Timings
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.items import items_of, tokenized
from rerankd.scorers.base import EncodedWindow
from rerankd.tasks.base import Task

T = TypeVar("T")
R = TypeVar("R")


class WindowWriter(Protocol[T]):
    """A scorer of lists or of groups, as the writer of its prompts."""

    @property
    def task(self) -> Task[T]: ...

    @property
    def max_length(self) -> int: ...

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[T]: ...


class WindowPrompts(Generic[T, R]):
    """A window holds the indices of its documents in the request."""

    def __init__(
        self,
        scorer: WindowWriter[T],
        batcher: Intake[T, R],
        tokenizing: SharedWorker,
        query: str,
        documents: Sequence[str],
        options: ScoreOptions,
    ) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._query = query
        self._documents = documents
        self._options = options
        self._tokens = np.zeros(len(documents), dtype=np.int64)
        self._dropped = np.zeros(len(documents), dtype=np.int64)
        self._timings = Timings()

    def estimate(self, windows: Sequence[Sequence[int]]) -> Estimate:
        """What these windows should cost."""
        return Estimate(
            characters=sum(map(self._characters, windows)), items=len(windows), longest=self._scorer.max_length
        )

    async def run(self, windows: Sequence[Sequence[int]], ticket: Ticket[T, R]) -> Outcome[R]:
        """What the engine gives for each window: one trip through the batcher for all of them.

        Raises:
            InvalidRequest: a prompt does not fit into the model.
            DeadlineExceeded, RateLimited, ScoringFailed, Unavailable: see `Ticket.run`.
        """
        started = perf_counter()
        encoded = await gather_or_cancel(map(self._encode, windows))
        tokenized_at = perf_counter()
        items = items_of(self._scorer.task, [one.encoding for one in encoded], scope=self._options.scope)
        ticket.correct(self._tokenized(windows, encoded, items))
        costs = [item.cost for item in items]
        outcome = await ticket.run(items)
        self._timings += Timings(
            tokenize_s=tokenized_at - started, queue_s=outcome.queue_s, inference_s=outcome.inference_s
        )
        for place in range(len(windows)) if outcome.finished is None else outcome.finished:
            window = list(windows[place])
            self.charge(window, costs[place])
            self._dropped[window] = np.maximum(self._dropped[window], encoded[place].dropped)
        return outcome

    def charge(self, window: Sequence[int], tokens: int) -> None:
        """Count tokens as those of a window's documents in equal parts, so that a request's sum is what it cost."""
        share, rest = divmod(tokens, len(window))
        self._tokens[list(window)] += share
        self._tokens[list(window[:rest])] += 1

    def scores(self, values: FloatArray) -> Scores:
        """Scores with what all windows have cost."""
        return Scores(values=values, tokens=self._tokens, dropped=self._dropped, timings=self._timings)

    def _characters(self, window: Sequence[int]) -> int:
        return len(self._query) + sum(len(self._documents[candidate]) for candidate in window)

    def _tokenized(
        self, windows: Sequence[Sequence[int]], encoded: Sequence[EncodedWindow[T]], items: Sequence[WorkItem[T]]
    ) -> Tokenized:
        return tokenized(
            items,
            self._batcher.lengths_of(items),
            characters=list(map(self._characters, windows)),
            whole=[index for index, one in enumerate(encoded) if not one.dropped.any()],
        )

    async def _encode(self, window: Sequence[int]) -> EncodedWindow[T]:
        candidates = [self._documents[candidate] for candidate in window]
        return await self._tokenizing.run(
            share_of(self._options.terms, candidates),
            self._scorer.encode_window,
            self._query,
            candidates,
            max_document_tokens=self._options.max_tokens_per_doc,
            instruction=self._options.instruction,
        )
