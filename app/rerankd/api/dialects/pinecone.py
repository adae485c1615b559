"""Pinecone's rerank API: documents are objects, and the header X-Pinecone-Api-Version identifies its clients."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect
from rerankd.api.dialects.fields import (
    Documents,
    ModelName,
    RankFields,
    ReturnDocuments,
    TextsBody,
    TopN,
    search_units,
    texts_of,
    truncation_of,
    usage_of,
)
from rerankd.concurrency.slices import Sliced
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions

_OWN_PATHS = tuple(f"/pinecone{path}" for path in SHARED_PATHS)


class PineconeParameters(BaseModel):
    """Parameters that Pinecone passes to a model."""

    truncate: Literal["END", "NONE"] | None = Field(
        default=None, description="NONE rejects a document that is too long; END truncates it."
    )


class PineconeBody(TextsBody):
    model: ModelName = None
    query: str
    documents: Documents
    top_n: TopN = None
    return_documents: ReturnDocuments = None
    rank_fields: RankFields = None
    parameters: PineconeParameters | None = None

    def read_texts(self) -> Sliced[list[str]]:
        return texts_of(self.documents, self.raw_body, rank_fields=self.rank_fields, bare=True)

    def to_request(self) -> RerankRequest:
        truncate = self.parameters and self.parameters.truncate
        return RerankRequest(
            query=self.query,
            documents=self.texts,
            model=self.model,
            top_n=self.top_n,
            options=ScoreOptions(truncation=truncation_of(cut=truncate == "END" if truncate else None)),
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        # Unlike other services, Pinecone returns documents unless the request says not to.
        with_documents = self.return_documents is not False
        return {
            "id": request_id,
            "model": result.model,
            "data": (
                {
                    "index": ranked.index,
                    "score": ranked.relevance_score,
                    **({"document": self._as_object(ranked.index)} if with_documents else {}),
                }
                for ranked in result.results
            ),
            "usage": {"rerank_units": search_units(result), **usage_of(result)},
        }

    def _as_object(self, index: int) -> Any:  # noqa: ANN401 - what was sent
        document = self.documents[index]
        return {"text": document} if isinstance(document, str) else self.raw_body.entry("documents", index)


class PineconeResult(BaseModel):
    index: int
    score: float
    document: dict[str, Any] | None = None


class PineconeAnswer(BaseModel):
    model: str
    data: list[PineconeResult]
    usage: dict[str, int]


def _sent_by_pinecone(_body: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    return "x-pinecone-api-version" in headers


PINECONE: Final = Dialect(
    name="pinecone",
    paths=(*SHARED_PATHS, *_OWN_PATHS),
    document_fields=frozenset(["documents"]),
    truncation_hint='parameters: {"truncate": "END"}',
    body=PineconeBody,
    answer=PineconeAnswer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": [{"id": "1", "text": "Berlin is in Germany."}, {"id": "2", "text": "Paris is its capital."}],
        "top_n": 1,
        "return_documents": True,
        "parameters": {"truncate": "END"},
    },
    claims=_sent_by_pinecone,
)
