"""Several queries, one ranking: rewrites of a question, or the sub-questions that it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rerankd.domain.fusion import rank_scores
from rerankd.errors import InvalidRequest

Values = NDArray[np.float64]


class QueryMode(StrEnum):
    """How a document's scores for several queries become one."""

    RRF = "rrf"
    MAX = "max"
    MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryWishes:
    """The queries beside a request's own, and what each of all counts, its own first; None: the same."""

    others: Sequence[str]
    mode: QueryMode = QueryMode.RRF
    weights: Sequence[float] | None = None

    @property
    def shares(self) -> Values:
        """Weights that add up to 1, shape [queries].

        Raises:
            InvalidRequest: there is not one finite weight for each query, at least 0 and one of them more.
        """
        queries = 1 + len(self.others)
        if self.weights is None:
            return np.full(queries, 1 / queries)
        if len(self.weights) != queries:
            raise InvalidRequest(
                f"query_fusion.weights must have {queries} numbers, the first for query; it has {len(self.weights)}"
            )
        weights = np.array(self.weights, dtype=np.float64)
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
            raise InvalidRequest("query_fusion.weights must be numbers from 0 on, one of them above 0")
        weights = weights / float(weights.max())
        shares: Values = weights / float(weights.sum())
        return shares


def join_values(values: Values, shares: Values, mode: QueryMode) -> Values:
    """One score a document from scores of shape [queries, documents]: the largest, with shares of the queries' only
    where they are not 0; the mean; or twice the sum of share/(60 + rank), which is reciprocal rank fusion of two for
    equal shares.
    """
    if mode is QueryMode.MEAN:
        mean: Values = shares @ values
        return mean
    if mode is QueryMode.MAX:
        largest: Values = values[shares > 0].max(axis=0)
        return largest
    ranked = np.stack([rank_scores(np.argsort(-row, kind="stable").tolist()) for row in values])
    fused: Values = 2 * (shares @ ranked)
    return fused
