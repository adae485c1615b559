"""Fusion: one order from the scores of the first stage, which found the documents, and those of the reranker.

Reranking more documents makes cross-encoders worse beyond about 100 of them (Jacob et al., "Drowning in Documents:
Consequences of Scaling Reranker Inference", 2024); the first stage's own scores are the remedy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rerankd.errors import InvalidRequest

if TYPE_CHECKING:
    from rerankd.domain.diversity import DiversityPlan

Values = NDArray[np.float64]

# Of reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009.
_RANK_OFFSET: Final = 60


class FusionMode(StrEnum):
    """How two scores become one. `rrf` looks at ranks only, and so needs no scores that resemble one another."""

    NONE = "none"
    Z_SCORE = "z-score"
    MIN_MAX = "min-max"
    RRF = "rrf"


_MODE: Final = {
    "description": "`z-score`, `min-max` (both add normalized scores), `rrf` (adds reciprocal ranks) or `none`."
}
_WEIGHT: Final = {"ge": 0, "le": 1, "allow_inf_nan": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionPlan:
    """How scores are fused; a table of the registry. `weight` is the first stage's, and the reranker has the rest."""

    mode: FusionMode = field(default=FusionMode.NONE, metadata=_MODE)
    weight: float = field(
        default=0.5, metadata={**_WEIGHT, "description": "What the first stage counts, 0 to 1; the model has the rest."}
    )
    ranks: bool = field(
        default=False,
        metadata={"description": "Fuse requests without scores too: their documents come in the first stage's order."},
    )

    def fuse(self, first: ArrayLike, reranked: ArrayLike) -> Values:
        """The fused scores of documents from both of their scores, all of shape [documents]; higher is better.

        With a = `weight`: a·z(first) + (1-a)·z(reranked), where z subtracts the mean and divides by the standard
        deviation; the same after min-max normalization; or 2a/(60 + rank) + 2(1-a)/(60 + rank), which is the usual sum
        for a = 1/2. Scores that are all equal say nothing: z and min-max give zeros.
        """
        normalize = _NORMALIZED[self.mode]
        ours, theirs = normalize(_floats(reranked)), normalize(_floats(first))
        return self.weight * theirs + (1 - self.weight) * ours

    def relevance(self, fused: Values) -> Values:
        """Fused scores as numbers from 0 to 1, in the same order. They compare documents of one request only."""
        if self.mode is FusionMode.Z_SCORE:
            # Unlike a sigmoid it does not saturate, whatever the number of documents.
            bounded: Values = (1 + fused / (1 + np.abs(fused))) / 2
            return bounded
        return fused * ((1 + _RANK_OFFSET) / 2) if self.mode is FusionMode.RRF else fused


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionWishes:
    """A caller's wishes; None: what the operator's plan says. `scores` are the first stage's, one a document; None: the
    documents come in its order.
    """

    mode: FusionMode | None = field(default=None, metadata=_MODE)
    weight: float | None = field(
        default=None,
        metadata={**_WEIGHT, "description": "What your first stage counts, 0 to 1; the model has the rest."},
    )
    scores: list[float] | None = field(
        default=None,
        metadata={
            "fail_fast": True,
            "description": "Your first stage's score of each document; absent: documents come in its order.",
        },
    )

    def within(self, plan: FusionPlan) -> FusionPlan:
        """The plan with these wishes. A request that asks for fusion gets it, even where the operator names none."""
        default = FusionMode.Z_SCORE if plan.mode is FusionMode.NONE else plan.mode
        weight = plan.weight if self.weight is None else self.weight
        return FusionPlan(mode=self.mode or default, weight=weight, ranks=plan.ranks)

    def first_scores(self, order: Sequence[int]) -> Values:
        """The first stage's scores; where it sent none, those of `order`, the indices of all documents, best first.

        Raises:
            InvalidRequest: there is not one finite score for each document.
        """
        if self.scores is None:
            return rank_scores(order)
        if len(self.scores) != len(order):
            raise InvalidRequest(
                f"fusion.scores must have one score for each of the {len(order)} documents; it has {len(self.scores)}"
            )
        scores = _floats(self.scores)
        if not np.isfinite(scores).all():
            raise InvalidRequest(f"fusion.scores[{int(np.argmin(np.isfinite(scores)))}] is not a finite number")
        return scores


NO_FUSION: Final = FusionWishes(mode=FusionMode.NONE)


@dataclass(frozen=True, slots=True)
class Fused:
    """Scores that say the order of documents, shape [documents], and the plan that made them: of the first stage's
    scores and the model's, or of the model's for several queries (`of_queries`). With `diversity` they were made of
    those again.
    """

    plan: FusionPlan
    values: Values
    of_queries: bool = False
    diversity: "DiversityPlan | None" = None

    @property
    def of_first_stage(self) -> bool:
        """Whether the first stage's scores are a part of them."""
        return self.plan.mode is not FusionMode.NONE and not self.of_queries

    @property
    def relevance(self) -> Values:
        """The scores as numbers from 0 to 1, in the same order."""
        return self.plan.relevance(self.values) if self.diversity is None else self.values


def rank_scores(order: Sequence[int]) -> Values:
    """Scores of documents of which only the order is known, best first: 1/(60 + rank)."""
    scores = np.empty(len(order))
    scores[np.asarray(order, dtype=np.int64)] = 1 / (_RANK_OFFSET + 1.0 + np.arange(len(order)))
    return scores


def _floats(scores: ArrayLike) -> Values:
    return np.asarray(scores, dtype=np.float64)


def _scaled(scores: Values) -> Values:
    """Scores between -1 and 1, so that sums and squares of them stay finite; zeros where all scores are equal."""
    if not len(scores) or scores.min() == scores.max():
        return np.zeros(len(scores))
    scaled: Values = scores / np.abs(scores).max()
    return scaled


def _z_scores(scores: Values) -> Values:
    scaled = _scaled(scores)
    deviation = float(scaled.std()) if scaled.any() else 0.0
    return (scaled - float(scaled.mean())) / deviation if deviation else scaled


def _min_max(scores: Values) -> Values:
    scaled = _scaled(scores)
    spread = float(np.ptp(scaled))
    return (scaled - float(scaled.min())) / spread if spread else scaled


def _reciprocal_ranks(scores: Values) -> Values:
    """Twice 1/(60 + rank); equal scores are ranked in the order of the request."""
    return 2 * rank_scores(np.argsort(-scores, kind="stable").tolist())


_NORMALIZED: Final[Mapping[FusionMode, Callable[[Values], Values]]] = {
    FusionMode.NONE: _floats,
    FusionMode.Z_SCORE: _z_scores,
    FusionMode.MIN_MAX: _min_max,
    FusionMode.RRF: _reciprocal_ranks,
}
