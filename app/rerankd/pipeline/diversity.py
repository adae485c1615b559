"""Reorders the most relevant documents so that none is much like those before it, where the request or the operator
wishes it. The model's own scores, and what is cached of them, stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.turns import Share
from rerankd.domain import (
    NO_DIVERSITY,
    DiversityPlan,
    DiversityWishes,
    EmbeddedDocuments,
    Embedder,
    Fused,
    FusionPlan,
    ScoreOptions,
    Scores,
    Truncation,
)
from rerankd.errors import InvalidRequest
from rerankd.pipeline.embedded import Texts
from rerankd.pipeline.stage import Stage


@dataclass(frozen=True, slots=True)
class TextEmbedder:
    """The vectors that a scorer of vectors has of documents, cut to what its model reads."""

    texts: Texts

    async def vectors(self, documents: Sequence[str], options: ScoreOptions, /) -> EmbeddedDocuments:
        """The vector of each document.

        Raises:
            RerankError: see `Texts.embed`.
        """
        # Without all vectors there is no order.
        alone = replace(options, truncation=Truncation.TRUNCATE, terms=options.terms.undivided())
        embedded = await self.texts.embed("document", documents, alone)
        vectors = np.stack([vector for vector in embedded.vectors if vector is not None]).astype(np.float32)
        return EmbeddedDocuments(vectors, embedded.tokens, embedded.timings)


class DiversityStage:
    """Wraps all stages that decide a document's score. `plan` is the operator's; `own` embeds documents with the model
    itself, where it can, unless the operator names another one.
    """

    def __init__(self, inner: Stage, ordering: SharedWorker, *, plan: DiversityPlan, own: Embedder | None) -> None:
        self._inner = inner
        self._ordering = ordering
        self._plan = plan
        self._own = own

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given; `fused` says the order if it is a diverse one.

        Raises:
            InvalidRequest: nothing embeds documents.
            RerankError: what the inner stage or the embedder raises.
        """
        wishes = options.diversity or (DiversityWishes() if self._plan.weight else NO_DIVERSITY)
        plan = wishes.within(self._plan)
        if not plan.weight:
            return await self._inner.score(query, documents, options)
        embedder = options.embedder or self._own
        if embedder is None:
            raise InvalidRequest(
                "this model has no vectors of documents; leave diversity out, or have its operator set diversity_model"
            )
        # The best of the diverse order may be anywhere in the model's.
        scores = await self._inner.score(query, documents, replace(options, top_n=None, diversity=None, settled=None))
        known = np.flatnonzero(scores.known)
        if not len(known):
            return scores
        ranked = known[np.argsort(-scores.merits[known], kind="stable")]
        best = np.sort(ranked[: plan.depth])
        embedded = await embedder.vectors([documents[index] for index in best.tolist()], options)
        share = Share(caller=options.terms.caller, cost=embedded.vectors.size, left=embedded.vectors.size)
        marginal = await self._ordering.run(share, plan.marginal_relevance, scores.merits[best], embedded.vectors)
        values = np.zeros(len(documents))
        values[best] = marginal
        others = ranked[plan.depth :]
        values[others] = marginal.min() * np.arange(len(others), 0, -1) / (len(others) + 1)
        tokens = scores.tokens.copy()
        tokens[best] += embedded.tokens
        inner = scores.fused.plan if scores.fused is not None else FusionPlan()
        of_queries = scores.fused is not None and scores.fused.of_queries
        return replace(
            scores,
            tokens=tokens,
            timings=scores.timings + embedded.timings,
            fused=Fused(inner, values, of_queries=of_queries, diversity=plan),
        )
