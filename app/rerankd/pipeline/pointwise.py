"""Scores each document by itself: encode, one trip through the batcher, interpret."""

from collections.abc import Sequence
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.ticket import Intake, Outcome, Ticket
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import BoolArray, FloatArray, IntArray, ScoreOptions, Scores, SpanArray, Timings, Truncation
from rerankd.pipeline.items import EncodedItems, encode_items, encoded_items, finished, tokenized
from rerankd.scorers.base import EncodesQuickly, Grades, PairScorer, Prunes, Remarks, Writes

T = TypeVar("T")
R = TypeVar("R")


class PointwiseStage(Generic[T, R]):
    def __init__(self, scorer: PairScorer[T, R], batcher: Intake[T, R], tokenizing: SharedWorker) -> None:
        self._scorer = scorer
        self._writes = scorer if isinstance(scorer, Writes) else None
        self._grades = scorer if isinstance(scorer, Grades) else None
        self._quick = scorer if isinstance(scorer, EncodesQuickly) else None
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given. Under `truncation: error` nothing is scored as soon as one of them
        does not fit: values are then NaN, and `dropped` says which.

        Raises:
            InvalidRequest: the query leaves no room for a document.
            Overloaded, DeadlineExceeded, ScoringFailed, Unavailable: see `Intake.admit` and `Ticket.run`.
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
        done = finished(outcome, len(documents))
        values, scored, ungraded = self._values(outcome, done), done, 0
        if self._grades is not None:
            ungraded = sum(map(self._grades.ungraded, outcome.results))
            values, scored = _graded(values, done)
        return Scores(
            values=values,
            scored=scored,
            ungraded=ungraded,
            marks=self._marks(pairs, outcome, options),
            remarks=self._remarks(outcome, len(documents), options),
            tokens=self._tokens(pairs, outcome, done, options),
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

    def _tokens(
        self, pairs: EncodedItems[T], outcome: Outcome[R], scored: BoolArray | None, options: ScoreOptions
    ) -> IntArray:
        """What the model read of each pair that it scored, and wrote about it: both cost alike."""
        read = pairs.tokens if scored is None else np.where(scored, pairs.tokens, 0)
        if self._writes is None:
            return read
        written = np.fromiter(map(self._writes.written, outcome.results), dtype=np.int64)
        options.terms.meter.compute(int(written.sum()))
        tokens = read.copy()
        tokens[slice(None) if scored is None else scored] += written
        return tokens

    def _marks(self, pairs: EncodedItems[T], outcome: Outcome[R], options: ScoreOptions) -> SpanArray | None:
        """What the model says of each token of those pairs that it read, if the request prunes."""
        if options.prune is None or not isinstance(self._scorer, Prunes):
            return None
        marks = np.full(len(pairs.items), None, dtype=np.object_)
        done = range(len(pairs.items)) if outcome.finished is None else outcome.finished
        for index, result in zip(done, outcome.results, strict=True):
            marks[index] = self._scorer.keep(pairs.items[index].payload, result)
        return marks

    def _remarks(self, outcome: Outcome[R], documents: int, options: ScoreOptions) -> SpanArray | None:
        """What the model says of those pairs that it scored."""
        if not isinstance(self._scorer, Remarks):
            return None
        remarks = np.full(documents, None, dtype=np.object_)
        done = range(documents) if outcome.finished is None else outcome.finished
        for index, result in zip(done, outcome.results, strict=True):
            remarks[index] = self._scorer.remark(result)
        options.terms.hold(sum(len(one.reason) for one in remarks if one is not None))
        return remarks

    async def _encode(
        self, query: str, documents: Sequence[str], options: ScoreOptions, ticket: Ticket[T, R]
    ) -> EncodedItems[T]:
        def encode(chunk: Sequence[str]) -> tuple[EncodedItems[T], Tokenized]:
            return self._encode_chunk(query, chunk, options)

        def is_quick() -> bool:
            return self._quick is not None and self._quick.is_quick(query, documents)

        return await encode_items(documents, encode, ticket, self._tokenizing, options.terms, is_quick=is_quick)

    def _encode_chunk(
        self, query: str, documents: Sequence[str], options: ScoreOptions
    ) -> tuple[EncodedItems[T], Tokenized]:
        """Blocking."""
        pairs = self._scorer.encode(
            query,
            documents,
            max_document_tokens=options.max_tokens_per_doc,
            instruction=options.instruction,
            owner=options.terms.caller,
        )
        encoded = encoded_items(
            self._scorer.task, pairs.encodings, pairs.dropped, scope=options.scope, group=pairs.group
        )
        part = tokenized(
            encoded.items,
            self._batcher.lengths_of(encoded.items),
            characters=[len(query) + len(document) for document in documents],
            whole=np.flatnonzero(pairs.dropped == 0).tolist(),
        )
        return encoded, part


def _graded(values: FloatArray, scored: BoolArray | None) -> tuple[FloatArray, BoolArray | None]:
    """The values of graded documents, and which documents are graded; None: all."""
    graded = np.isfinite(values) if scored is None else np.isfinite(values) & scored
    return np.where(graded, values, 0), None if graded.all() else graded


def _unscored(pairs: EncodedItems[T], *, tokenize_s: float) -> Scores:
    return Scores(
        values=np.full(len(pairs.items), np.nan, dtype=np.float32),
        tokens=np.zeros(len(pairs.items), dtype=np.int64),
        dropped=pairs.dropped,
        timings=Timings(tokenize_s=tokenize_s),
    )
