"""vLLM's score API: one text against many, or many pairs, answered in the order of the request."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import AliasChoices, BaseModel, Field

from app.api.dialects.base import Call, Dialect, Json
from app.api.dialects.fields import ModelName, Priority, score_of, usage_of
from app.domain import RerankRequest, RerankResult, ScoreOptions
from app.errors import InvalidRequest


class ScoreCall(Call):
    model: ModelName = None
    queries: str | list[str] = Field(
        validation_alias=AliasChoices("text_1", "queries", "query", "data_1"),
        description="One text for all documents, or one for each of them.",
    )
    documents: str | list[str] = Field(
        validation_alias=AliasChoices("text_2", "documents", "data_2", "items"), description="What to score."
    )
    use_activation: bool | None = Field(
        default=None,
        validation_alias=AliasChoices("use_activation", "activation"),
        description="False answers with the model's raw scores.",
    )
    priority: Priority = None

    def to_requests(self) -> Sequence[RerankRequest]:
        return [
            RerankRequest(
                query=query,
                documents=[document for _, document in pairs],
                model=self.model,
                options=ScoreOptions(priority=self.priority or 0),
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
            "data": [{"index": index, "object": "score", "score": scores[index]} for index in sorted(scores)],
            "usage": usage_of(*results),
        }

    def _pairs_of_query(self) -> dict[str, list[tuple[int, str]]]:
        """The documents of each query, with their position in the request."""
        documents = [self.documents] if isinstance(self.documents, str) else self.documents
        queries = [self.queries] if isinstance(self.queries, str) else self.queries
        if len(queries) == 1:
            queries = queries * len(documents)
        if not documents or len(queries) != len(documents):
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
    name="vllm-score", paths=("/score", "/v1/score"), call=ScoreCall, answer=ScoreAnswer, example=_EXAMPLE
)
