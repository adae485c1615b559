"""A cheap model first, then expensive ones: each member reorders the best documents of the member before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rerankd.domain import NO_FUSION, ScoreOptions, Scores
from rerankd.pipeline.stage import Stage
from rerankd.pipeline.windowed import values_of_order
from rerankd.telemetry.spans import traced


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
        known = Scores.unread(len(documents))
        for member, top_n in zip(self._members, self._wanted(options.top_n), strict=True):
            best = order[: member.depth].copy()
            texts = [documents[index] for index in best.tolist()]
            with traced(f"member {member.name}", {"rerankd.items": len(texts)}):
                scores = await member.stage.score(query, texts, _as_member(options, top_n=top_n))
            order[: len(best)] = best[np.argsort(-scores.values, kind="stable")]
            known = known.reread(best, replace(scores, placed_by=np.full(len(best), member.name, dtype=np.object_)))
        return replace(known, values=values_of_order(order.tolist()))

    def _wanted(self, top_n: int | None) -> Iterator[int | None]:
        """How many of its best documents each member must order: as many as later members read, and the last as many
        as the caller asked for. A schedule that settles fewer would choose at random what the next member reads.
        """
        for later in self._members[1:]:
            yield None if top_n is None or later.depth is None else max(top_n, later.depth)
        yield top_n


def _as_member(options: ScoreOptions, *, top_n: int | None) -> ScoreOptions:
    """What a caller asks of a cascade, as its members are to understand it.

    A caller's order is of all documents, and of no meaning to a member that sees some of them in another order. Half of
    a member's scores are no order, so a deadline is an error even where a partial answer was asked for. Spans of what
    one member finds relevant would say nothing about the order of another. The cascade's order is fused, not theirs.
    """
    windows = options.windows and replace(options.windows, initial_order=None)
    return replace(
        options,
        top_n=top_n,
        windows=windows,
        spans=None,
        fusion=NO_FUSION,
        queries=None,
        budgeted=False,
        terms=options.terms.undivided(),
    )
