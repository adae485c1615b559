"""Scores documents by comparing their vectors with the query's. Both are embedded at the same time."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Final

import numpy as np

from rerankd.concurrency.gathering import gather_or_cancel
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.turns import Share
from rerankd.domain import FloatArray, IntArray, ScoreOptions, Scores, Terms, Timings, Truncation
from rerankd.errors import InvalidRequest, TooLong
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.embedded import Texts
from rerankd.scorers.base import AnyVectorScorer, AsksOverDocuments, Vectors

# As many as are compared in one turn of a thread.
_DOCUMENTS_PER_CALL: Final = 250
# How many numbers are compared in the time in which a character is tokenized.
_NUMBERS_PER_CHARACTER: Final = 64
# About as many documents are read together with a query, if any are.
_READ_WITH_QUERY: Final = 20


class ComparedStage:
    def __init__(self, scorer: AnyVectorScorer, texts: Texts, comparing: SharedWorker) -> None:
        self._scorer = scorer
        self._texts = texts
        self._comparing = comparing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given. Under `truncation: error` nothing is scored if one of them does not
        fit: values are then NaN, and `dropped` says which.

        Raises:
            InvalidRequest: the query is too long.
            RerankError: see `Texts.embed`.
        """
        if isinstance(self._scorer, AsksOverDocuments):
            share = share_of(options.terms, [query, *documents[:_READ_WITH_QUERY]])
            query = await self._comparing.run(share, self._scorer.query_over, query, documents, options.instruction)
        # Without the query's vectors there is no part of an answer.
        whole = replace(options, terms=options.terms.undivided())
        asked, read = await gather_or_cancel(
            [self._texts.embed("query", [query], whole), self._texts.embed("document", documents, options)]
        )
        dropped = int(asked.dropped[0])
        if options.truncation is Truncation.ERROR and dropped:
            raise InvalidRequest(TooLong(problem=f"the query is {dropped} tokens too long for this model; shorten it"))
        started = perf_counter()
        scored = np.array([vectors is not None for vectors in read.vectors], dtype=np.bool_)
        values = np.full(len(documents), np.nan, dtype=np.float32)
        # Under `truncation: error` those that the cache knew may have been cut.
        if options.truncation is not Truncation.ERROR or not read.dropped.any():
            (query_vectors,) = [vectors for vectors in asked.vectors if vectors is not None]
            known = [vectors for vectors in read.vectors if vectors is not None]
            values[scored] = await self._compare(query_vectors, known, options.terms)
        return Scores(
            values=values,
            tokens=_with_query(read.tokens, int(asked.tokens[0])),
            dropped=read.dropped,
            cached=read.cached,
            scored=None if scored.all() else scored,
            query_dropped=dropped,
            timings=asked.timings.beside(read.timings) + Timings(inference_s=perf_counter() - started),
        )

    async def _compare(self, query: Vectors, documents: Sequence[Vectors], terms: Terms) -> FloatArray:
        values = [np.zeros(0, dtype=np.float32)]
        costs = [1 + vectors.size // _NUMBERS_PER_CHARACTER for vectors in documents]
        for start in range(0, len(documents), _DOCUMENTS_PER_CALL):
            end = start + _DOCUMENTS_PER_CALL
            share = Share(caller=terms.caller, cost=sum(costs[start:end]), left=sum(costs[start:]), urgent=terms.urgent)
            values.append(await self._comparing.run(share, self._scorer.compare, query, documents[start:end]))
        return np.concatenate(values)


def _with_query(tokens: IntArray, query: int) -> IntArray:
    """Tokens of documents, with the query's in equal parts on those that were read: a request's sum is what the model
    read.
    """
    places = np.flatnonzero(tokens)
    counted = tokens.copy()
    if len(places):
        share, rest = divmod(query, len(places))
        counted[places] += share
        counted[places[:rest]] += 1
    return counted
