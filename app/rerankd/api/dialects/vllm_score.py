"""vLLM's score API: one text against many, or many pairs, answered in the order of the request."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect, limits_of
from rerankd.api.dialects.fields import ReadingFields, score_of, usage_of
from rerankd.api.dialects.images import Query, SentImages
from rerankd.api.dialects.pairs import PairsBody
from rerankd.concurrency.slices import Sliced, run_to_end
from rerankd.domain import RerankResult, ScoreOptions
from rerankd.errors import InvalidRequest

_QUERIES: Final = ("text_1", "queries", "query", "data_1")
_DOCUMENTS: Final = ("text_2", "documents", "data_2", "items")


def _as_list(texts: object) -> object:
    """One text, or the parts of one content, as many."""
    if isinstance(texts, dict) and isinstance(texts.get("content"), list):
        return texts["content"]
    return [texts] if isinstance(texts, str | dict) else texts


_Texts = Annotated[
    list[Query],
    FailFast(),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "additionalProperties": True},
                {
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": True}]},
                },
            ]
        }
    ),
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

    _sent: SentImages = PrivateAttr()
    _names: tuple[str, str] = PrivateAttr(default=(_QUERIES[0], _DOCUMENTS[0]))
    _texts: tuple[list[str], list[str]] | None = PrivateAttr(default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _remember_names(cls, fields: Any, read: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - a body
        """What the client calls queries and documents."""
        body = read(fields)
        if isinstance(fields, Mapping):
            queries, documents = (
                next((name for name in names if name in fields), names[0]) for names in (_QUERIES, _DOCUMENTS)
            )
            body._names = queries, documents  # noqa: SLF001 - its own
        return body

    @model_validator(mode="after")
    def _bound_images(self, info: ValidationInfo) -> Self:
        self._sent = SentImages(limits_of(info).images)
        return self

    @property
    def image_bytes(self) -> int:
        return self._sent.bytes

    def prepare(self) -> Sliced[None]:
        of_queries, of_documents = self._names
        queries = yield from self._sent.texts_of(self.queries, name=of_queries)
        documents = yield from self._sent.texts_of(self.documents, name=of_documents)
        self._texts = queries, documents

    def distinct_queries(self) -> int:
        return len({query for query in self.queries if isinstance(query, str)}) + sum(
            not isinstance(query, str) for query in self.queries
        )

    def options(self) -> ScoreOptions:
        return self.reading()

    def pairs(self) -> Sequence[tuple[str, str]]:
        if self._texts is None:
            run_to_end(self.prepare())
        assert self._texts is not None  # noqa: S101 - it was prepared
        queries, documents = self._texts
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
