"""Scores a request's documents together, in blocks that share a prompt: one trip through the batcher for all."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Final, Generic, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import IntArray, ScoreOptions, Scores, Timings
from rerankd.errors import ScoringFailed
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.items import items_of, tokenized
from rerankd.scorers.base import BlockScorer, EncodedBlocks

T = TypeVar("T")
R = TypeVar("R")

# About what is tokenized in one slice of time, after which other requests have their turn.
_CHARACTERS_PER_SLICE: Final = 10_000


class BlockStage(Generic[T, R]):
    def __init__(self, scorer: BlockScorer[T, R], batcher: Intake[T, R], tokenizing: SharedWorker) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given.

        Raises:
            InvalidRequest: the query leaves no room for a document.
            ScoringFailed: the model's score of a document is not a finite number.
            Overloaded, DeadlineExceeded, Unavailable: see `Intake.admit` and `Ticket.run`.
        """
        started = perf_counter()
        estimate = Estimate(characters=sum(map(len, documents)) + len(query), items=1, longest=self._scorer.max_length)
        # A part of the blocks scores no document, so a deadline is an error even where a partial answer was asked for.
        async with self._batcher.admit(estimate, options.terms.undivided()) as ticket:
            encoding = self._scorer.encode_blocks(
                query,
                documents,
                max_document_tokens=options.max_tokens_per_doc,
                instruction=options.instruction,
            )
            share = share_of(options.terms, documents)
            share = replace(share, cost=min(share.cost, _CHARACTERS_PER_SLICE))
            encoded = await self._tokenizing.run_sliced(share, encoding)
            read = perf_counter()
            items = items_of(self._scorer.task, encoded.encodings, scope=options.scope)
            costs = [item.cost for item in items]
            whole = [] if encoded.dropped.any() else range(len(items))
            characters = [estimate.characters // len(items)] * len(items)
            ticket.correct(tokenized(items, self._batcher.lengths_of(items), characters, whole=list(whole)))
            outcome = await ticket.run(items)
        values = self._scorer.interpret_blocks(outcome.results)
        if not np.isfinite(values).all():
            raise ScoringFailed("the model's score of a document is not a finite number")
        return Scores(
            values=values,
            tokens=_shares(encoded, costs),
            dropped=encoded.dropped,
            timings=Timings(tokenize_s=read - started, queue_s=outcome.queue_s, inference_s=outcome.inference_s),
        )


def _shares(encoded: EncodedBlocks[T], costs: Sequence[int]) -> IntArray:
    """A prompt's tokens are its documents' in equal parts, so that a request's sum is what the model read."""
    shares = [cost // size + (np.arange(size) < cost % size) for cost, size in zip(costs, encoded.sizes, strict=True)]
    return np.concatenate(shares).astype(np.int64)
