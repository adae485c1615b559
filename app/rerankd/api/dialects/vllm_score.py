"""vLLM's score API: one text against many, or many pairs, answered in the order of the request."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, FailFast, Field, WithJsonSchema

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect
from rerankd.api.dialects.fields import ReadingFields, score_of, usage_of
from rerankd.api.dialects.pairs import PairsBody
from rerankd.domain import RerankResult, ScoreOptions
from rerankd.errors import InvalidRequest

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


class ScoreBody(ReadingFields, PairsBody):
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

    def distinct_queries(self) -> int:
        return len(set(self.queries))

    def options(self) -> ScoreOptions:
        return self.reading()

    def pairs(self) -> Sequence[tuple[str, str]]:
        queries, documents = self.queries, self.documents
        if len(queries) == 1:
            queries = queries * len(documents)
        if not documents:
            raise InvalidRequest("no documents; send at least one")
        if len(queries) != len(documents):
            raise InvalidRequest(
                f"{len(queries)} texts cannot be paired with {len(documents)}; send one text_1, or as many as text_2"
            )
        return list(zip(queries, documents, strict=True))

    def render(self, results: Sequence[RerankResult], *, request_id: str) -> Json:
        raw = self.use_activation is False
        return {
            "id": request_id,
            "object": "list",
            "model": results[0].model,
            "data": (
                {"index": index, "object": "score", "score": score_of(ranked, raw=raw)}
                for index, ranked in self.ranked(results)
            ),
            "usage": usage_of(*results),
        }


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
