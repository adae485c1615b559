"""Scores each document by itself: encode, one trip through the batcher, interpret."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from rerankd.batching.batcher import Batcher, Forwarded, Place, Tokenised, identities_of, work_of
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, IntArray, ScoreOptions, Scores, Timings, Truncation
from rerankd.pipeline.portions import portions
from rerankd.scorers.base import PairScorer
from rerankd.tasks.encoding import Encoding

# A larger request is tokenised in portions: others get their turn between two of them, and a client that goes away
# stops the rest. With 500, ten documents beside 1,000-document requests waited up to 0.1 s for it.
_DOCUMENTS_PER_CALL = 100
_CHARACTERS_PER_CALL = 100_000


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A request's encodings and what tells them apart, their lengths in tokens and what was cut off: one a document."""

    encodings: list[Encoding]
    identities: list[bytes]
    tokens: IntArray
    dropped: IntArray


class PointwiseStage:
    def __init__(self, scorer: PairScorer, batcher: Batcher, tokenizing: SharedWorker) -> None:
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
            pairs = await self._encode(query, documents, options, place)
            tokenized = perf_counter()
            if options.truncation is Truncation.ERROR and pairs.dropped.any():
                return _unscored(pairs, tokenize_s=tokenized - started)
            forwarded = await place.forward(pairs.encodings, pairs.identities)
        return Scores(
            values=self._values(forwarded),
            scored=None if forwarded.scored.all() else forwarded.scored,
            tokens=np.where(forwarded.scored, pairs.tokens, 0),
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

    async def _encode(self, query: str, documents: Sequence[str], options: ScoreOptions, place: Place) -> _Pairs:
        encodings: list[Encoding] = []
        identities: list[bytes] = []
        encoded = []
        for some, share in portions(
            documents, options.terms, most=_DOCUMENTS_PER_CALL, characters=_CHARACTERS_PER_CALL
        ):
            portion, tokenised = await self._tokenizing.run(
                share, self._encode_portion, query, documents[some], options
            )
            place.correct(tokenised)
            encoded.append(portion)
            encodings += portion.encodings
            identities += portion.identities
        return _Pairs(
            encodings,
            identities,
            tokens=np.concatenate([portion.tokens for portion in encoded]),
            dropped=np.concatenate([portion.dropped for portion in encoded]),
        )

    def _encode_portion(self, query: str, documents: Sequence[str], options: ScoreOptions) -> tuple[_Pairs, Tokenised]:
        """Blocking."""
        pairs = self._scorer.encode(
            query,
            documents,
            max_document_tokens=options.max_tokens_per_doc,
            instruction=options.instruction,
            owner=options.terms.caller,
        )
        encodings = list(pairs.encodings)
        tokens = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        lengths = self._batcher.lengths_of(encodings)
        characters = [len(query) + len(document) for document in documents]
        whole = np.flatnonzero(pairs.dropped == 0).tolist()
        tokenised = Tokenised(
            characters=sum(characters),
            encodings=len(encodings),
            tokens=int(tokens.sum()),
            work=work_of(lengths),
            whole_characters=sum(characters[index] for index in whole),
            whole_tokens=sum(lengths[index] for index in whole),
        )
        return _Pairs(
            encodings, identities_of(encodings, scope=options.scope), tokens=tokens, dropped=pairs.dropped
        ), tokenised


def _unscored(pairs: _Pairs, *, tokenize_s: float) -> Scores:
    return Scores(
        values=np.full(len(pairs.encodings), np.nan, dtype=np.float32),
        tokens=np.zeros(len(pairs.encodings), dtype=np.int64),
        dropped=pairs.dropped,
        timings=Timings(tokenize_s=tokenize_s),
    )
