"""Ranks by several queries at once: scores the documents for each of them, and makes one score of all.

Each query's scores are cached as if it had been asked alone. Queries of which only as many documents are read as fit
before the deadline go one after another, each with an equal part of the time that is left: the same documents should
have scores for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from rerankd.concurrency.gathering import gather_or_cancel
from rerankd.concurrency.pacing import pause
from rerankd.domain import Fused, FusionMode, FusionPlan, QueryMode, QueryWishes, ScoreOptions, Scores
from rerankd.domain.queries import Values, join_values
from rerankd.pipeline.stage import Stage

_RECIPROCAL_RANKS = FusionPlan(mode=FusionMode.RRF)
# The queries of one request that are worked on at the same time. With more the event loop would serve it only.
_CONCURRENT_QUERIES = 128


class SeveralQueriesStage:
    """Wraps the stages that score documents for one query."""

    def __init__(self, inner: Stage, *, clock: Callable[[], float] = perf_counter) -> None:
        self._inner = inner
        self._clock = clock

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given, for all queries. By reciprocal ranks `fused` says the order, and
        `values` are the largest of any query.

        Raises:
            InvalidRequest: the weights are not those of the queries, or a query is blank or too long.
            RerankError: what the inner stage raises.
        """
        wishes = options.queries
        if wishes is None:
            return await self._inner.score(query, documents, options)
        shares = wishes.shares
        # The best for all queries may be anywhere in the order for one of them.
        alone = replace(options, queries=None, top_n=None, settled=None)
        asked = (query, *wishes.others)
        parts: dict[int, Scores] = {}
        waiting = iter(enumerate(asked))

        async def work() -> None:
            for index, one in waiting:
                timed = self._in_part_of_time(alone, len(asked) - index) if options.budgeted else alone
                parts[index] = await self._inner.score(one, documents, timed)
                await pause()

        await gather_or_cancel(work() for _ in asked[: 1 if options.budgeted else _CONCURRENT_QUERIES])
        return _joined([parts[index] for index in range(len(asked))], wishes, shares)

    def _in_part_of_time(self, options: ScoreOptions, parts: int) -> ScoreOptions:
        """With a deadline after the first of `parts` equal parts of the time that is left."""
        now = self._clock()
        deadline = now + (options.terms.deadline - now) / parts
        return replace(options, terms=replace(options.terms, deadline=deadline))


def _joined(parts: Sequence[Scores], wishes: QueryWishes, shares: Values) -> Scores:
    spent = parts[0]
    for part in parts[1:]:
        timings = spent.timings.beside(part.timings)
        spent = replace(spent.reread(np.arange(len(part)), part), timings=timings)
    values = np.stack([part.values for part in parts]).astype(np.float64)
    known = np.logical_and.reduce([part.known for part in parts])
    in_time = [part.scored for part in parts if part.scored is not None]
    mode = QueryMode.MAX if wishes.mode is QueryMode.RRF else wishes.mode
    scores = replace(
        spent,
        values=join_values(values, shares, mode).astype(np.float32),
        blank=parts[0].blank,
        scored=np.logical_and.reduce(in_time) if in_time else None,
        placed_by=None,
        kept=parts[0].kept,
    )
    if wishes.mode is not QueryMode.RRF:
        return scores
    fused = np.zeros(len(known))
    fused[known] = join_values(values[:, known], shares, QueryMode.RRF)
    return replace(scores, fused=Fused(_RECIPROCAL_RANKS, fused, of_queries=True))
