"""What dialects of pairs have in common: each pair brings its own query, and scores come in the order of the pairs."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Self

from pydantic import ValidationInfo, model_validator

from rerankd.api.dialects.base import RequestBody, limits_of
from rerankd.api.dialects.fields import ModelName
from rerankd.domain import RankedDocument, RerankRequest, RerankResult, ScoreOptions
from rerankd.errors import RequestTooLarge


class PairsBody(RequestBody):
    """The pairs of one query become one request."""

    model: ModelName = None

    @abstractmethod
    def pairs(self) -> Sequence[tuple[str, str]]:
        """Queries and documents.

        Raises:
            InvalidRequest: there are none, or they are not pairs.
        """

    @abstractmethod
    def options(self) -> ScoreOptions: ...

    @abstractmethod
    def distinct_queries(self) -> int: ...

    @model_validator(mode="after")
    def _reject_many_queries(self, info: ValidationInfo) -> Self:
        distinct = self.distinct_queries()
        if distinct > limits_of(info).queries:
            raise RequestTooLarge(f"at most {limits_of(info).queries} different queries per request; got {distinct}")
        return self

    def to_requests(self) -> Sequence[RerankRequest]:
        options = self.options()
        pairs = self.pairs()
        return [
            RerankRequest(
                query=query, documents=[pairs[place][1] for place in places], model=self.model, options=options
            )
            for query, places in self._places.items()
        ]

    def ranked(self, results: Sequence[RerankResult]) -> Iterator[tuple[int, RankedDocument]]:
        """Each pair's position and result, in the order of the pairs."""
        found = {
            places[ranked.index]: ranked
            for result, places in zip(results, self._places.values(), strict=True)
            for ranked in result.results
        }
        return iter(sorted(found.items()))

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """The positions of each query's pairs."""
        places: dict[str, list[int]] = {}
        for place, (query, _) in enumerate(self.pairs()):
            places.setdefault(query, []).append(place)
        return places
