"""A cheap model first, then expensive ones: each member reorders the best documents of the member before."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rerankd.domain import NO_DIVERSITY, NO_FUSION, BoolArray, ScoreOptions, Scores, settled_of
from rerankd.errors import DeadlineExceeded, Overloaded
from rerankd.pipeline.budget import deepest
from rerankd.pipeline.stage import Stage
from rerankd.pipeline.windowed import values_of_order
from rerankd.telemetry.spans import traced


async def _always(_query: str, _documents: Sequence[str], _options: ScoreOptions) -> bool:
    return True


# Whether a model would score documents for a query before the deadline, as far as can be known now.
Fits = Callable[[str, Sequence[str], ScoreOptions], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a cascade; it reorders the first `depth` documents, None: all."""

    name: str
    stage: Stage
    depth: int | None
    fits: Fits = _always


class CascadeStage:
    """Its scores say the order and nothing else: members' scores are of different kinds.

    Where a request wishes that, each member reads as many documents as fit before the deadline, and later ones none if
    not even one does. Where it takes a part of an answer, a later member that is late all the same changes nothing.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Order the documents; `placed_by` says which member gave each its place.

        Raises:
            RerankError: what a member's stage raises.
        """
        order = np.arange(len(documents))
        known = Scores.unread(len(documents))
        cuts: dict[str, int] = {}
        for number, (member, top_n) in enumerate(zip(self._members, self._wanted(options.top_n), strict=True)):
            asked = _as_member(options, top_n=top_n)
            texts = [documents[index] for index in order[: member.depth].tolist()]
            if options.budgeted:
                texts = texts[: await _cut(member, query, texts, asked, least=0 if number else 1)]
            best = order[: len(texts)].copy()
            if member is self._members[-1] and not options.terms.partial:
                asked = replace(asked, settled=settled_of(options.settled, best))
            scores = await _scored(member, query, texts, asked, may_be_late=options.terms.partial and number > 0)
            cuts[member.name] = 0 if scores is None else len(texts)
            if scores is None:
                break
            order[: len(best)] = best[np.argsort(-scores.values, kind="stable")]
            known = known.reread(best, replace(scores, placed_by=np.full(len(best), member.name, dtype=np.object_)))
        known = replace(known, values=values_of_order(order.tolist()))
        if not options.terms.partial:
            return known
        first = self._members[0]
        whole = cuts[first.name] == min(first.depth or len(documents), len(documents))
        return replace(known, cuts=cuts, scored=known.scored if whole else _placed(known))

    def _wanted(self, top_n: int | None) -> Iterator[int | None]:
        """How many of its best documents each member must order: as many as later members read, and the last as many
        as the caller asked for. A schedule that settles fewer would choose at random what the next member reads.
        """
        for later in self._members[1:]:
            yield None if top_n is None or later.depth is None else max(top_n, later.depth)
        yield top_n


async def _cut(member: Member, query: str, texts: Sequence[str], options: ScoreOptions, *, least: int) -> int:
    """How many of these documents a member can score in time, `least` of them at least."""

    async def fits(depth: int) -> bool:
        return await member.fits(query, texts[:depth], options)

    depth = await deepest(len(texts), fits)
    return depth if depth > 1 or await fits(1) else least


async def _scored(
    member: Member, query: str, texts: Sequence[str], options: ScoreOptions, *, may_be_late: bool
) -> Scores | None:
    """A member's scores; None: it has no time for any."""
    if not texts:
        return None
    with traced(f"member {member.name}", {"rerankd.items": len(texts)}):
        try:
            return await member.stage.score(query, texts, options)
        except (DeadlineExceeded, Overloaded):
            if may_be_late:
                return None
            raise


def _placed(scores: Scores) -> BoolArray:
    """Which documents some member has scored."""
    named = [] if scores.placed_by is None else scores.placed_by.tolist()
    placed = np.array([name is not None for name in named], dtype=np.bool_)
    return placed if scores.scored is None else placed & scores.scored


def _as_member(options: ScoreOptions, *, top_n: int | None) -> ScoreOptions:
    """What a caller asks of a cascade, as its members are to understand it.

    A caller's order is of all documents, and of no meaning to a member that sees some of them in another order. Half of
    a member's scores are no order, so a member has no partial answer. Spans of what one member finds relevant would say
    nothing about the order of another. The cascade's order is fused and made diverse, not theirs.
    """
    windows = options.windows and replace(options.windows, initial_order=None)
    return replace(
        options,
        top_n=top_n,
        windows=windows,
        spans=None,
        fusion=NO_FUSION,
        diversity=NO_DIVERSITY,
        embedder=None,
        queries=None,
        budgeted=False,
        settled=None,
        terms=options.terms.undivided(),
    )
