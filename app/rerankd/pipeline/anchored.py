"""Reads a part of a request's documents, and estimates from their scores which of the others are worth reading."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.turns import Share
from rerankd.domain import AnchorPlan, IntArray, ScoreOptions, Scores
from rerankd.errors import DeadlineExceeded, Overloaded
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.stage import Stage
from rerankd.scorers.anchors import Anchors


class AnchorStage:
    """Wraps stages whose scores depend on the pair alone. Estimates only choose what is read: a document that is not
    read has no score. Documents outside of the anchors' corpus are always read.
    """

    def __init__(self, inner: Stage, estimating: SharedWorker, anchors: Anchors, *, plan: AnchorPlan) -> None:
        self._inner = inner
        self._estimating = estimating
        self._anchors = anchors
        self._plan = plan

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score as many documents as the plan says, the anchors first; `skipped` counts the others.

        Raises:
            RerankError: what the inner stage raises.
        """
        rows = await self._estimating.run(share_of(options.terms, documents), self._anchors.rows, documents)
        known = np.flatnonzero(rows >= 0)
        if len(known) <= self._plan.depth:
            return await self._inner.score(query, documents, options)
        others = known[self._plan.anchors :]
        first = np.delete(np.arange(len(documents)), others)
        scores = await self._read(query, documents, first, options)
        best = await self._most_promising(rows, first, others, scores, options)
        skipped = np.setdiff1d(others, best, assume_unique=True)
        again = await self._read_in_time(query, documents, best, scores, options)
        unread = _unread(len(skipped), skipped=len(skipped))
        order = np.concatenate([first, best, skipped])
        return Scores.concatenate([scores, again, unread]).take(np.argsort(order))

    async def _read(self, query: str, documents: Sequence[str], positions: IntArray, options: ScoreOptions) -> Scores:
        return await self._inner.score(query, [documents[index] for index in positions.tolist()], options)

    async def _read_in_time(
        self, query: str, documents: Sequence[str], best: IntArray, before: Scores, options: ScoreOptions
    ) -> Scores:
        """The scores of the best; none where a request takes a part of an answer, and there is no time for more."""
        partial = options.terms.partial
        if not len(best) or (partial and before.scored is not None and not before.scored.all()):
            return _unread(len(best))
        try:
            return await self._read(query, documents, best, options)
        except (DeadlineExceeded, Overloaded):
            if not partial:
                raise
            return _unread(len(best))

    async def _most_promising(
        self, rows: IntArray, first: IntArray, others: IntArray, scores: Scores, options: ScoreOptions
    ) -> IntArray:
        """The positions to read next, ascending: of the highest estimates. Without a score to estimate from, the first
        ones.
        """
        wanted = self._plan.depth - self._plan.anchors
        usable = scores.known & (rows[first] >= 0)
        if wanted < 1 or not usable.any():
            return others[: max(wanted, 0)]
        size = int(usable.sum() + len(others)) * self._anchors.scores.shape[1]
        estimates = await self._estimating.run(
            Share(caller=options.terms.caller, cost=size, left=size),
            self._anchors.estimate,
            rows[first[usable]],
            scores.values[usable],
            rows[others],
            cutoff=self._plan.cutoff,
        )
        return np.sort(others[np.argsort(-estimates, kind="stable")[:wanted]])


def _unread(documents: int, *, skipped: int = 0) -> Scores:
    return replace(Scores.unread(documents), scored=np.zeros(documents, dtype=np.bool_), skipped=skipped)
