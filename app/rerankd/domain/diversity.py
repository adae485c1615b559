"""Diversity: an order whose documents are relevant, and unlike those before them.

Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing Summaries",
SIGIR 1998 (maximal marginal relevance).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rerankd.domain.arrays import FloatArray, IntArray
from rerankd.domain.scores import Timings

if TYPE_CHECKING:
    from rerankd.domain.options import ScoreOptions

Values = NDArray[np.float64]

_WEIGHT: Final = {"ge": 0, "le": 1, "allow_inf_nan": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversityPlan:
    """How much likeness counts; a table of the registry. `weight` is that of likeness, and relevance has the rest."""

    weight: float = field(
        default=0.0,
        metadata={**_WEIGHT, "description": "What likeness to better documents counts, 0 (nothing) to 1."},
    )
    depth: int = field(
        default=100,
        metadata={"ge": 2, "le": 1000, "description": "Reorder only this many documents, the most relevant."},
    )

    def marginal_relevance(self, relevance: ArrayLike, vectors: FloatArray) -> Values:
        """What each document adds when it is chosen, in [0, 1]: higher is better, and says the order.

        Args:
            relevance: shape [documents], on any scale: min-max normalized here.
            vectors: shape [documents, width]; documents are as alike as the cosine of theirs, if that is above 0.

        The document chosen next has the highest (1 - weight)·relevance - weight·(likeness to any chosen one).
        """
        scores = np.asarray(relevance, dtype=np.float64)
        spread = np.ptp(scores)
        gains = (1 - self.weight) * ((scores - scores.min()) / spread if spread else np.zeros(len(scores)))
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        alike = np.zeros(len(scores))
        values, open_ = np.zeros(len(scores)), np.ones(len(scores), dtype=np.bool_)
        for _ in range(len(scores)):
            marginal = np.where(open_, gains - self.weight * alike, -np.inf)
            chosen = int(marginal.argmax())
            values[chosen] = marginal[chosen] + self.weight
            open_[chosen] = False
            alike = np.maximum(alike, np.clip(units @ units[chosen], 0, 1))
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversityWishes:
    """A caller's wishes; None: what the operator's plan says."""

    weight: float | None = field(
        default=None,
        metadata={**_WEIGHT, "description": "What likeness to better documents counts, 0 (nothing) to 1."},
    )
    depth: int | None = field(
        default=None, metadata={"ge": 2, "description": "Reorder only this many documents, the most relevant."}
    )

    def within(self, plan: DiversityPlan) -> DiversityPlan:
        """The plan with these wishes, and never deeper. A request that names no weight gets 0.3 where the operator
        names none either.
        """
        weight = plan.weight or 0.3 if self.weight is None else self.weight
        return DiversityPlan(weight=weight, depth=min(self.depth or plan.depth, plan.depth))


NO_DIVERSITY: Final = DiversityWishes(weight=0)


@dataclass(frozen=True, slots=True)
class EmbeddedDocuments:
    """Documents' vectors, shape [documents, width], and what they cost."""

    vectors: FloatArray
    tokens: IntArray
    timings: Timings


class Embedder(Protocol):
    """A model that gives documents vectors."""

    async def vectors(self, documents: Sequence[str], options: "ScoreOptions", /) -> EmbeddedDocuments:
        """The vector of each document.

        Raises:
            RerankError: see `rerankd.errors`.
        """
