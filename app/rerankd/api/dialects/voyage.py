"""Voyage's rerank API: `top_k`, `truncation`, and results under `data`."""

from typing import Final, Literal

from pydantic import BaseModel

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect, has_field
from rerankd.api.dialects.fields import (
    Documents,
    ModelName,
    ReturnDocuments,
    TextsBody,
    TopN,
    Truncate,
    texts_of,
    truncation_of,
    usage_of,
)
from rerankd.concurrency.slices import Sliced
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions

# A body without top_k and truncation looks like Jina's.
_OWN_PATHS = tuple(f"/voyage{path}" for path in SHARED_PATHS)


class VoyageBody(TextsBody):
    model: ModelName = None
    query: str
    documents: Documents
    top_k: TopN = None
    return_documents: ReturnDocuments = None
    truncation: Truncate = None

    def read_texts(self) -> Sliced[list[str]]:
        return texts_of(self.documents, self.raw_body, rank_fields=None)

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query,
            documents=self.texts,
            model=self.model,
            top_n=self.top_k,
            options=ScoreOptions(truncation=truncation_of(cut=self.truncation)),
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        return {
            "object": "list",
            "id": request_id,
            "data": (
                {
                    "index": ranked.index,
                    "relevance_score": ranked.relevance_score,
                    **({"document": self.texts[ranked.index]} if self.return_documents else {}),
                }
                for ranked in result.results
            ),
            "model": result.model,
            "usage": usage_of(result),
        }


class VoyageResult(BaseModel):
    index: int
    relevance_score: float
    document: str | None = None


class VoyageAnswer(BaseModel):
    object: Literal["list"]
    data: list[VoyageResult]
    model: str
    usage: dict[str, int]


VOYAGE: Final = Dialect(
    name="voyage",
    paths=(*SHARED_PATHS, *_OWN_PATHS),
    document_fields=frozenset(["documents"]),
    truncation_hint="truncation: true",
    body=VoyageBody,
    answer=VoyageAnswer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "top_k": 1,
        "truncation": True,
    },
    claims=has_field("top_k", "truncation"),
)
