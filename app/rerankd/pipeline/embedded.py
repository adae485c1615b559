"""Embeds texts: encode, one trip through the batcher, and for each text its vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, Protocol, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.worker import in_chunks
from rerankd.domain import BoolArray, IntArray, ScoreOptions, Timings, Truncation
from rerankd.pipeline.items import EncodedItems, encode_items, encoded_items, finished, tokenized
from rerankd.scorers.base import Role, Vectors, VectorScorer

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The vectors of texts, in their order; None for those that have none. `tokens`, `dropped` and `cached` are as in
    `Scores`, shape [texts].
    """

    vectors: Sequence[Vectors | None]
    tokens: IntArray
    dropped: IntArray
    cached: BoolArray | None = None
    timings: Timings = field(default_factory=Timings)


class Texts(Protocol):
    """Knows the vectors of texts."""

    async def embed(self, role: Role, texts: Sequence[str], options: ScoreOptions) -> Embedded:
        """The vectors of texts of one role, at least one. Under `truncation: error` there are none if a text does not
        fit.

        Raises:
            RerankError: see `rerankd.errors`.
        """


class BatchedTexts(Generic[T, R]):
    """Embeds every text, by the model."""

    def __init__(self, scorer: VectorScorer[T, R], batcher: Intake[T, R], tokenizing: SharedWorker) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def embed(self, role: Role, texts: Sequence[str], options: ScoreOptions) -> Embedded:
        """Embed the texts. Where the deadline comes first and part of an answer is wanted, some have no vectors.

        Raises:
            InvalidRequest: a query is too long, or the model reads no instruction.
            Overloaded, DeadlineExceeded, ScoringFailed, Unavailable: see `Intake.admit` and `Ticket.run`.
        """
        started = perf_counter()
        longest = self._scorer.max_length
        estimate = Estimate(characters=sum(map(len, texts)), items=len(texts), longest=longest)
        async with self._batcher.admit(estimate, options.terms) as ticket:

            def encode(chunk: Sequence[str]) -> tuple[EncodedItems[T], Tokenized]:
                return self._encode(role, chunk, options)

            encoded = await encode_items(texts, encode, ticket, self._tokenizing, options.terms)
            tokenized_at = perf_counter()
            timings = Timings(tokenize_s=tokenized_at - started)
            if options.truncation is Truncation.ERROR and encoded.dropped.any():
                nothing = np.zeros(len(texts), dtype=np.int64)
                return Embedded(vectors=[None] * len(texts), tokens=nothing, dropped=encoded.dropped, timings=timings)
            options.terms.hold(sum(map(self._scorer.form.bytes_of, encoded.tokens.tolist())))
            payloads = [item.payload for item in encoded.items]
            outcome = await ticket.run(encoded.items)
        done = finished(outcome, len(texts))
        places = range(len(texts)) if done is None else np.flatnonzero(done).tolist()
        vectors: list[Vectors | None] = [None] * len(texts)
        async for span in in_chunks(len(places), most=self._scorer.form.texts_at_a_time):
            for place, result in zip(places[span], outcome.results[span], strict=True):
                vectors[place] = self._scorer.vectors(payloads[place], result)
        return Embedded(
            vectors=vectors,
            tokens=encoded.tokens if done is None else np.where(done, encoded.tokens, 0),
            dropped=encoded.dropped,
            timings=timings + Timings(queue_s=outcome.queue_s, inference_s=outcome.inference_s),
        )

    def _encode(self, role: Role, texts: Sequence[str], options: ScoreOptions) -> tuple[EncodedItems[T], Tokenized]:
        """Blocking."""
        encoded = self._scorer.encode(
            role,
            texts,
            max_tokens=options.max_tokens_per_doc if role == "document" else None,
            instruction=options.instruction if role == "query" else None,
        )
        items = encoded_items(self._scorer.task, encoded.encodings, encoded.dropped, scope=options.scope)
        part = tokenized(
            items.items,
            self._batcher.lengths_of(items.items),
            characters=list(map(len, texts)),
            whole=np.flatnonzero(items.dropped == 0).tolist(),
        )
        return items, part
