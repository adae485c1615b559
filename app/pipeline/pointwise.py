"""Scores each document by itself: encode, one trip through the batcher, interpret."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from app.batching.batcher import Batcher, Forwarded, identities_of
from app.domain import FloatArray, ScoreOptions, Scores, Timings, Truncation
from app.scorers.base import EncodedPairs, PairScorer
from app.worker import Worker

# A larger request is tokenised in portions: others get their turn between two of them, a client that goes away stops
# the rest, and smaller calls are faster as well (docs/benchmarks.md).
_DOCUMENTS_PER_CALL = 500


class PointwiseStage:
    def __init__(self, scorer: PairScorer, batcher: Batcher, tokenizing: Worker) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given. Under `truncation: error` nothing is scored as soon as one of them
        does not fit: values are then NaN, and `dropped` says which.

        Raises:
            InvalidRequest: the query leaves no room for a document.
            Overloaded, ScoringFailed, Unavailable: see `Batcher.forward`.
        """
        started = perf_counter()
        characters = sum(map(len, documents)) + len(query) * len(documents)
        with self._batcher.place(
            characters=characters, encodings=len(documents), longest=self._longest(query, options), terms=options.terms
        ) as place:
            pairs, identities = await self._encode(query, documents, options)
            tokenized = perf_counter()
            if options.truncation is Truncation.ERROR and pairs.dropped.any():
                return _unscored(pairs, tokenize_s=tokenized - started)
            forwarded = await place.forward(pairs.encodings, identities, cut=bool(pairs.dropped.any()))
        return Scores(
            values=self._values(forwarded),
            scored=None if forwarded.scored.all() else forwarded.scored,
            tokens=np.array([len(encoding.ids) for encoding in pairs.encodings], dtype=np.int64),
            dropped=pairs.dropped,
            timings=Timings(
                tokenize_s=tokenized - started,
                queue_s=forwarded.queue_s,
                inference_s=forwarded.inference_s,
            ),
        )

    def _longest(self, query: str, options: ScoreOptions) -> int:
        """No pair will have more tokens than this; of a query not even more than it has characters."""
        allowed = options.max_tokens_per_doc
        return self._scorer.max_length if allowed is None else min(self._scorer.max_length, allowed + len(query))

    def _values(self, forwarded: Forwarded) -> FloatArray:
        if forwarded.scored.all():
            return self._scorer.interpret(forwarded.logits)
        values = np.zeros(len(forwarded.scored), dtype=np.float32)
        if forwarded.scored.any():
            values[forwarded.scored] = self._scorer.interpret(forwarded.logits[forwarded.scored])
        return values

    async def _encode(
        self, query: str, documents: Sequence[str], options: ScoreOptions
    ) -> tuple[EncodedPairs, list[bytes]]:
        portions = [
            await self._tokenizing.run(
                self._encode_portion, query, documents[start : start + _DOCUMENTS_PER_CALL], options
            )
            for start in range(0, len(documents), _DOCUMENTS_PER_CALL)
        ]
        pairs = EncodedPairs(
            [encoding for portion, _ in portions for encoding in portion.encodings],
            np.concatenate([portion.dropped for portion, _ in portions]),
        )
        return pairs, [identity for _, identities in portions for identity in identities]

    def _encode_portion(
        self, query: str, documents: Sequence[str], options: ScoreOptions
    ) -> tuple[EncodedPairs, list[bytes]]:
        pairs = self._scorer.encode(
            query, documents, max_document_tokens=options.max_tokens_per_doc, instruction=options.instruction
        )
        return pairs, identities_of(pairs.encodings)


def _unscored(pairs: EncodedPairs, *, tokenize_s: float) -> Scores:
    return Scores(
        values=np.full(len(pairs.encodings), np.nan, dtype=np.float32),
        tokens=np.zeros(len(pairs.encodings), dtype=np.int64),
        dropped=pairs.dropped,
        timings=Timings(tokenize_s=tokenize_s),
    )
