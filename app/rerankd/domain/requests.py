"""What a caller asks for, and what it gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rerankd.domain.confidence import Confidence
from rerankd.domain.options import ScoreOptions
from rerankd.domain.scores import Scores, Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """What a caller asks for, whatever the dialect. `documents` are the texts that the model reads. A document or
    query with an image is a `Document`. Results that the model finds less relevant than `min_score` are left out.
    """

    query: str
    documents: Sequence[str]
    model: str | None = None
    top_n: int | None = None
    min_score: float | None = None
    options: ScoreOptions = ScoreOptions()


def queries_of(request: RerankRequest) -> Sequence[str]:
    """The request's query, and those that are asked beside it."""
    wishes = request.options.queries
    return (request.query, *wishes.others) if wishes else (request.query,)


class RankedDocument(NamedTuple):
    """`index` is the document's position in the request, `value` the raw score, `relevance_score` its activation. A
    document that is not `scored` had no score when the deadline came. `placed_by` is the model of a cascade that gave
    the document its place. Where `relevance_score` is that of a fusion, `own_relevance` is the model's.
    """

    index: int  # type: ignore[assignment] # hides a method of tuples that nobody needs here
    relevance_score: float
    value: float
    scored: bool = True
    placed_by: str | None = None
    own_relevance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """`results` are in order of relevance; `scores` are those of all documents, in the order of the request, with
    zeros for blank ones. `scorer` names the method. `fallback_for` is the model that could not answer, if this one
    did for it.
    """

    model: str
    scorer: str
    results: Sequence[RankedDocument]
    scores: Scores
    ignored: Sequence[str] = ()
    fallback_for: str = ""
    confidence: Confidence | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the model read, now or when it filled the cache."""
        return int(self.scores.tokens.sum())

    @property
    def dropped_tokens(self) -> int:
        return int(self.scores.dropped.sum())

    @property
    def truncated_documents(self) -> int:
        return int(np.count_nonzero(self.scores.dropped))

    @property
    def unscored_documents(self) -> int:
        """How many had no score when the deadline came."""
        return 0 if self.scores.scored is None else int(np.count_nonzero(~self.scores.scored))

    @property
    def cached(self) -> int:
        return 0 if self.scores.cached is None else int(np.count_nonzero(self.scores.cached))

    @property
    def pairs(self) -> int:
        """How many texts were compared with the query: documents, or their passages."""
        passages = self.scores.passages
        return len(self.scores.values) if passages is None else int(np.maximum(passages.counts, 1).sum())

    @property
    def timings(self) -> Timings:
        return self.scores.timings
