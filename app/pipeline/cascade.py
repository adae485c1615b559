"""A cheap model first, a dear one at the top: each member reorders the best documents of the one before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.domain import ScoreOptions, Scores, Timings
from app.pipeline.stage import Stage
from app.pipeline.windowed import values_of_order


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a cascade; it reorders the first `depth` documents, None: all."""

    name: str
    stage: Stage
    depth: int | None


class CascadeStage:
    """Its scores say the order and nothing else: members' scores are of different kinds."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Order the documents; `placed_by` says which member gave each its place.

        Raises:
            RerankError: what a member's stage raises.
        """
        order = np.arange(len(documents))
        tokens = np.zeros(len(documents), dtype=np.int64)
        dropped = np.zeros(len(documents), dtype=np.int64)
        placed_by: list[str | None] = [None] * len(documents)
        cached = np.zeros(len(documents), dtype=np.bool_)
        timings = Timings()
        for member in self._members:
            best = order[: member.depth]
            scores = await member.stage.score(query, [documents[index] for index in best], _without_order(options))
            order[: len(best)] = best[np.argsort(-scores.values, kind="stable")]
            tokens[best] += scores.tokens
            dropped[best] = np.maximum(dropped[best], scores.dropped)
            if scores.cached is not None:
                cached[best] |= scores.cached
            timings += scores.timings
            for index in best:
                placed_by[index] = member.name
        return Scores(
            values=values_of_order(order.tolist()),
            tokens=tokens,
            dropped=dropped,
            cached=cached,
            timings=timings,
            placed_by=placed_by,
        )


def _without_order(options: ScoreOptions) -> ScoreOptions:
    """A caller's order is of all documents, and of no meaning to a member that sees some of them in another order."""
    if options.windows is None or options.windows.initial_order is None:
        return options
    return replace(options, windows=replace(options.windows, initial_order=None))
