"""Scores each document by itself: encode, one trip through the batcher, interpret."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.batcher import Batcher
from rerankd.batching.ticket import Outcome, Ticket
from rerankd.batching.work import WorkItem
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import BoolArray, FloatArray, IntArray, ScoreOptions, Scores, Timings, Truncation
from rerankd.pipeline.chunks import chunks
from rerankd.pipeline.items import items_of, tokenized
from rerankd.scorers.base import PairScorer

T = TypeVar("T")
R = TypeVar("R")

# A larger request is tokenized in chunks: others get their turn between two of them, and a client that goes away
# stops the rest. With 500, ten documents beside 1,000-document requests waited up to 0.1 s for it.
_DOCUMENTS_PER_CALL = 100
_CHARACTERS_PER_CALL = 100_000


@dataclass(frozen=True, slots=True)
class _Pairs(Generic[T]):
    """A request's items, their lengths in tokens and what was cut off: one a document."""

    items: list[WorkItem[T]]
    tokens: IntArray
    dropped: IntArray


class PointwiseStage(Generic[T, R]):
    def __init__(self, scorer: PairScorer[T, R], batcher: Batcher[T, R], tokenizing: SharedWorker) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given. Under `truncation: error` nothing is scored as soon as one of them
        does not fit: values are then NaN, and `dropped` says which.

        Raises:
            InvalidRequest: the query leaves no room for a document.
            Overloaded, DeadlineExceeded, ScoringFailed, Unavailable: see `Batcher.admit` and `Ticket.run`.
        """
        started = perf_counter()
        estimate = Estimate(
            characters=sum(map(len, documents)) + len(query) * len(documents),
            items=len(documents),
            longest=self._longest(query, options),
        )
        async with self._batcher.admit(estimate, options.terms) as ticket:
            pairs = await self._encode(query, documents, options, ticket)
            tokenized = perf_counter()
            if options.truncation is Truncation.ERROR and pairs.dropped.any():
                return _unscored(pairs, tokenize_s=tokenized - started)
            outcome = await ticket.run(pairs.items)
        scored = _scored(outcome, len(documents))
        return Scores(
            values=self._values(outcome, scored),
            scored=scored,
            tokens=pairs.tokens if scored is None else np.where(scored, pairs.tokens, 0),
            dropped=pairs.dropped,
            timings=Timings(tokenize_s=tokenized - started, queue_s=outcome.queue_s, inference_s=outcome.inference_s),
        )

    def _longest(self, query: str, options: ScoreOptions) -> int:
        """No pair will have more tokens than this; of a query not even more than it has characters."""
        allowed = options.max_tokens_per_doc
        return self._scorer.max_length if allowed is None else min(self._scorer.max_length, allowed + len(query))

    def _values(self, outcome: Outcome[R], scored: BoolArray | None) -> FloatArray:
        if scored is None:
            return self._scorer.interpret(outcome.results)
        values = np.zeros(len(scored), dtype=np.float32)
        if outcome.results:
            values[scored] = self._scorer.interpret(outcome.results)
        return values

    async def _encode(
        self, query: str, documents: Sequence[str], options: ScoreOptions, ticket: Ticket[T, R]
    ) -> _Pairs[T]:
        items: list[WorkItem[T]] = []
        encoded = []
        for span, share in chunks(documents, options.terms, most=_DOCUMENTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            chunk, part = await self._tokenizing.run(share, self._encode_chunk, query, documents[span], options)
            ticket.correct(part)
            encoded.append(chunk)
            items += chunk.items
        return _Pairs(
            items,
            tokens=np.concatenate([chunk.tokens for chunk in encoded]),
            dropped=np.concatenate([chunk.dropped for chunk in encoded]),
        )

    def _encode_chunk(self, query: str, documents: Sequence[str], options: ScoreOptions) -> tuple[_Pairs[T], Tokenized]:
        """Blocking."""
        pairs = self._scorer.encode(
            query,
            documents,
            max_document_tokens=options.max_tokens_per_doc,
            instruction=options.instruction,
            owner=options.terms.caller,
        )
        items = items_of(self._scorer.task, pairs.encodings, scope=options.scope)
        part = tokenized(
            items,
            self._batcher.lengths_of(items),
            characters=[len(query) + len(document) for document in documents],
            whole=np.flatnonzero(pairs.dropped == 0).tolist(),
        )
        return _Pairs(items, np.array([item.cost for item in items], dtype=np.int64), pairs.dropped), part


def _scored(outcome: Outcome[R], documents: int) -> BoolArray | None:
    """Which documents have a result; None: all."""
    if outcome.finished is None:
        return None
    scored = np.zeros(documents, dtype=np.bool_)
    scored[outcome.finished] = True
    return scored


def _unscored(pairs: _Pairs[T], *, tokenize_s: float) -> Scores:
    return Scores(
        values=np.full(len(pairs.items), np.nan, dtype=np.float32),
        tokens=np.zeros(len(pairs.items), dtype=np.int64),
        dropped=pairs.dropped,
        timings=Timings(tokenize_s=tokenize_s),
    )
