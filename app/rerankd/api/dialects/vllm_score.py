"""vLLM's score API: one text against many, or many pairs, answered in the order of the request."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect, RequestBody, limits_of
from rerankd.api.dialects.fields import ModelName, Priority, score_of, usage_of
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, Terms
from rerankd.errors import InvalidRequest, RequestTooLarge

_QUERIES: Final = ("text_1", "queries", "query", "data_1")
_DOCUMENTS: Final = ("text_2", "documents", "data_2", "items")


def _as_list(texts: object) -> object:
    return [texts] if isinstance(texts, str) else texts


_Texts = Annotated[
    list[str],
    FailFast(),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class ScoreBody(RequestBody):
    model: ModelName = None
    queries: _Texts = Field(
        validation_alias=AliasChoices(*_QUERIES),
        description="One text for all documents, or one for each of them.",
    )
    documents: _Texts = Field(validation_alias=AliasChoices(*_DOCUMENTS), description="What to score.")
    use_activation: bool | None = Field(
        default=None,
        validation_alias=AliasChoices("use_activation", "activation"),
        description="False answers with the model's raw scores.",
    )
    priority: Priority = None

    @model_validator(mode="after")
    def _reject_many_queries(self, info: ValidationInfo) -> Self:
        """Each distinct query becomes a request of its own."""
        distinct = len(set(self.queries))
        if distinct > limits_of(info).queries:
            raise RequestTooLarge(f"at most {limits_of(info).queries} different queries per request; got {distinct}")
        return self

    def to_requests(self) -> Sequence[RerankRequest]:
        return [
            RerankRequest(
                query=query,
                documents=[document for _, document in pairs],
                model=self.model,
                options=ScoreOptions(terms=Terms(priority=self.priority or 0)),
            )
            for query, pairs in self._pairs_of_query().items()
        ]

    def render(self, results: Sequence[RerankResult], *, request_id: str) -> Json:
        raw = self.use_activation is False
        scores = {
            pairs[ranked.index][0]: score_of(ranked, raw=raw)
            for result, pairs in zip(results, self._pairs_of_query().values(), strict=True)
            for ranked in result.results
        }
        return {
            "id": request_id,
            "object": "list",
            "model": results[0].model,
            "data": ({"index": index, "object": "score", "score": scores[index]} for index in sorted(scores)),
            "usage": usage_of(*results),
        }

    def _pairs_of_query(self) -> dict[str, list[tuple[int, str]]]:
        """The documents of each query, with their position in the request."""
        queries, documents = self.queries, self.documents
        if len(queries) == 1:
            queries = queries * len(documents)
        if not documents:
            raise InvalidRequest("no documents; send at least one")
        if len(queries) != len(documents):
            raise InvalidRequest(
                f"{len(queries)} texts cannot be paired with {len(documents)}; send one text_1, or as many as text_2"
            )
        pairs: dict[str, list[tuple[int, str]]] = {}
        for index, (query, document) in enumerate(zip(queries, documents, strict=True)):
            pairs.setdefault(query, []).append((index, document))
        return pairs


class ScoreEntry(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(BaseModel):
    id: str
    object: Literal["list"]
    model: str
    data: list[ScoreEntry]
    usage: dict[str, int]


_EXAMPLE: dict[str, Any] = {
    "model": "minilm-qa",
    "text_1": "What is the capital of France?",
    "text_2": ["Berlin is in Germany.", "Paris is the capital of France."],
}

VLLM_SCORE: Final = Dialect(
    name="vllm-score",
    paths=("/score", "/v1/score"),
    document_fields=frozenset(_DOCUMENTS),
    body=ScoreBody,
    answer=ScoreAnswer,
    example=_EXAMPLE,
)
