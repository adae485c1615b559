"""Chooses how many documents are read, so that the answer is in time: as many as the cost model expects to fit before
the deadline, beside what waits already. The others have no score, and follow in the order of the request.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.domain import ScoreOptions, Scores
from rerankd.pipeline.stage import Stage


class BudgetStage:
    """Wraps what reaches the engine: documents that the cache knows cost nothing. `longest` is the most tokens that the
    model reads of a pair.
    """

    def __init__(self, inner: Stage, batcher: Intake[Any, Any], *, longest: int) -> None:
        self._inner = inner
        self._batcher = batcher
        self._longest = longest

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score the first documents, as many as fit and one at least, if the request wishes that.

        Raises:
            RerankError: what the inner stage raises.
        """
        if not options.budgeted:
            return await self._inner.score(query, documents, options)
        ends = list(accumulate(len(query) + len(document) for document in documents))

        async def fits(depth: int) -> bool:
            estimate = Estimate(characters=ends[depth - 1], items=depth, longest=self._longest)
            return await self._batcher.fits(estimate, options.terms)

        depth = await deepest(len(documents), fits)
        if depth == len(documents):
            return await self._inner.score(query, documents, options)
        others = len(documents) - depth
        unread = replace(Scores.unread(others), scored=np.zeros(others, dtype=np.bool_))
        return Scores.concatenate([await self._inner.score(query, documents[:depth], options), unread])


async def deepest(most: int, fits: Callable[[int], Awaitable[bool]]) -> int:
    """The largest depth from 1 to `most` that fits, where less than a depth that fits does too; 1 if none does."""
    if await fits(most):
        return most
    fitting, failing = 1, most
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        fitting, failing = (middle, failing) if await fits(middle) else (fitting, middle)
    return fitting
