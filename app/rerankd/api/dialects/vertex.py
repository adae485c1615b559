"""Google's ranking API (Vertex AI): records with a title and a content go in, scored records come out."""

from http import HTTPStatus
from typing import Annotated, Any, Final

from pydantic import AliasChoices, BaseModel, FailFast, Field

from rerankd.api.answers import ERROR_SCHEMA, ErrorForm, Json, four_strings
from rerankd.api.dialects.base import Dialect, QueryBody
from rerankd.api.dialects.fields import LimitedFields, ModelName, TopN
from rerankd.domain import RerankRequest, RerankResult


class VertexRecord(BaseModel):
    id: str = ""
    title: str = ""
    content: str = ""

    @property
    def text(self) -> str:
        return f"{self.title}\n{self.content}" if self.title and self.content else self.title or self.content


class VertexBody(QueryBody):
    ranking_config: str = Field(default="", description="It has no meaning here.")
    # Google's clients leave out what is empty.
    query: str = ""
    records: Annotated[list[VertexRecord], FailFast(), LimitedFields] = Field(default_factory=list)
    model: ModelName = None
    top_n: TopN = Field(default=None, validation_alias=AliasChoices("topN", "top_n"))
    ignore_record_details_in_response: bool | None = Field(
        default=None,
        validation_alias=AliasChoices("ignoreRecordDetailsInResponse", "ignore_record_details_in_response"),
        description="Leave out title and content.",
    )
    user_labels: dict[str, Any] | None = Field(
        default=None,
        validation_alias=AliasChoices("userLabels", "user_labels"),
        description="They have no meaning here.",
    )

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query, documents=[record.text for record in self.records], model=self.model, top_n=self.top_n
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:  # noqa: ARG002 - no place for it
        shown = {"id"} if self.ignore_record_details_in_response else {"id", "title", "content"}
        return {
            "records": (
                {**self.records[ranked.index].model_dump(include=shown), "score": ranked.relevance_score}
                for ranked in result.results
            )
        }


class RankedRecord(VertexRecord):
    score: float


class VertexAnswer(BaseModel):
    records: list[RankedRecord]


def _error(status: int, code: str, message: str) -> Json:
    """Google's clients read an object in `error`, and fail over a string."""
    error = {"code": status, "message": message, "status": HTTPStatus(status).name}
    return four_strings(status, code, message) | {"error": error}


_ERROR: Final = {"code": {"type": "integer"}, "message": {"type": "string"}, "status": {"type": "string"}}
_ERROR_SCHEMA: Final = ERROR_SCHEMA | {
    "properties": {
        **ERROR_SCHEMA["properties"],
        "error": {"type": "object", "properties": _ERROR, "required": list(_ERROR)},
    }
}

VERTEX: Final = Dialect(
    name="vertex",
    paths=(
        "/v1/{ranking_config:path}:rank",
        "/v1beta/{ranking_config:path}:rank",
        "/v1alpha/{ranking_config:path}:rank",
    ),
    document_fields=frozenset(["records"]),
    body=VertexBody,
    answer=VertexAnswer,
    errors=ErrorForm(_error, _ERROR_SCHEMA),
    example={
        "query": "What is the capital of France?",
        "records": [
            {"id": "1", "title": "Berlin", "content": "Berlin is in Germany."},
            {"id": "2", "title": "Paris", "content": "Paris is the capital of France."},
        ],
        "topN": 1,
    },
)
