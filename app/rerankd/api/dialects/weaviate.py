"""What Weaviate's module `reranker-transformers` sends to its own server: scores in the order of the request."""

from typing import Annotated, Final

from pydantic import BaseModel, FailFast, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect, QueryBody
from rerankd.api.dialects.fields import ModelName
from rerankd.domain import RerankRequest, RerankResult


class WeaviateBody(QueryBody):
    """`model` is our addition: Weaviate names none."""

    query: str
    documents: Annotated[list[str], FailFast()]
    property: str | None = Field(default=None, description="Weaviate's; it has no meaning here.")
    model: ModelName = None

    def to_request(self) -> RerankRequest:
        return RerankRequest(query=self.query, documents=self.documents, model=self.model)

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:  # noqa: ARG002 - no place for it
        return {
            "query": self.query,
            "scores": (
                {"document": self.documents[ranked.index], "score": ranked.relevance_score}
                for ranked in sorted(result.results)
            ),
        }


class WeaviateScore(BaseModel):
    document: str
    score: float


class WeaviateAnswer(BaseModel):
    query: str
    scores: list[WeaviateScore]


WEAVIATE: Final = Dialect(
    name="weaviate",
    paths=("/weaviate/rerank",),
    document_fields=frozenset(["documents"]),
    body=WeaviateBody,
    answer=WeaviateAnswer,
    example={
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "property": "",
    },
)
