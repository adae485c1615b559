"""Scores each document by itself: encode, one trip through the batcher, interpret."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from app.batching.batcher import Batcher
from app.domain import ScoreOptions, Scores, Timings
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
        """Score every document, in the order given.

        Raises:
            InvalidRequest: the query leaves no room for a document.
            Overloaded, ScoringFailed, Unavailable: see `Batcher.forward`.
        """
        started = perf_counter()
        pairs = await self._encode(query, documents, options)
        tokenized = perf_counter()
        forwarded = await self._batcher.forward(pairs.encodings, urgent=options.urgent)
        return Scores(
            values=self._scorer.interpret(forwarded.logits),
            tokens=np.array([len(encoding.ids) for encoding in pairs.encodings], dtype=np.int64),
            dropped=pairs.dropped,
            timings=Timings(
                tokenize_s=tokenized - started,
                queue_s=forwarded.queue_s,
                inference_s=forwarded.inference_s,
            ),
        )

    async def _encode(self, query: str, documents: Sequence[str], options: ScoreOptions) -> EncodedPairs:
        portions = [
            await self._tokenizing.run(
                self._scorer.encode,
                query,
                documents[start : start + _DOCUMENTS_PER_CALL],
                max_document_tokens=options.max_tokens_per_doc,
                instruction=options.instruction,
            )
            for start in range(0, len(documents), _DOCUMENTS_PER_CALL)
        ]
        return EncodedPairs(
            [encoding for portion in portions for encoding in portion.encodings],
            np.concatenate([portion.dropped for portion in portions]),
        )
