"""Fuses a model's scores with those of the first stage, where the request or the operator wishes it. The model's own
scores, and what is cached of them, stay as they are.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rerankd.domain import NO_FUSION, Fused, FusionMode, FusionPlan, FusionWishes, ScoreOptions, Scores, WindowWishes
from rerankd.pipeline.stage import Stage


class FusionStage:
    """Wraps all stages that decide a document's score. `plan` is the operator's."""

    def __init__(self, inner: Stage, *, plan: FusionPlan) -> None:
        self._inner = inner
        self._plan = plan

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given; `fused` says the order if anything was fused.

        Raises:
            InvalidRequest: the request's scores are not one a document.
            RerankError: what the inner stage raises.
        """
        wishes = options.fusion or (FusionWishes() if self._plan.ranks else NO_FUSION)
        plan = wishes.within(self._plan)
        if plan.mode is FusionMode.NONE:
            return await self._inner.score(query, documents, options)
        first = wishes.first_scores((options.windows or WindowWishes()).order_of(len(documents)))
        # The best of the fused order may be anywhere in the model's.
        scores = await self._inner.score(query, documents, replace(options, top_n=None, fusion=None, settled=None))
        known = scores.known
        fused = np.zeros(len(documents))
        fused[known] = plan.fuse(first[known], scores.merits[known])
        return replace(scores, fused=Fused(plan, fused))
