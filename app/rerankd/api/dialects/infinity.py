"""Infinity's rerank API: Jina's, but documents are returned as plain strings, and raw scores are available."""

from typing import Final, Literal

from pydantic import BaseModel

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect, has_field
from rerankd.api.dialects.fields import (
    ModelName,
    RawScores,
    ReturnDocuments,
    TopN,
    score_of,
    usage_of,
)
from rerankd.api.dialects.illustrated import IllustratedBody
from rerankd.domain import RerankRequest, RerankResult

# A body without raw_scores looks like Jina's, whose documents are returned as objects.
_OWN_PATHS = tuple(f"/infinity{path}" for path in SHARED_PATHS)


# Infinity's client sends this when its user names no model.
_NO_MODEL = "default/not-specified"


class InfinityBody(IllustratedBody):
    model: ModelName = None
    top_n: TopN = None
    return_documents: ReturnDocuments = None
    raw_scores: RawScores = None

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query_text,
            documents=self.texts,
            model=None if self.model == _NO_MODEL else self.model,
            top_n=self.top_n,
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        return {
            "object": "rerank",
            "id": request_id,
            "model": result.model,
            "results": (
                {
                    "index": ranked.index,
                    "relevance_score": score_of(ranked, raw=self.raw_scores),
                    **({"document": self.texts[ranked.index]} if self.return_documents else {}),
                }
                for ranked in result.results
            ),
            "usage": usage_of(result),
        }


class InfinityResult(BaseModel):
    index: int
    relevance_score: float
    document: str | None = None


class InfinityAnswer(BaseModel):
    object: Literal["rerank"]
    id: str
    model: str
    results: list[InfinityResult]
    usage: dict[str, int]


INFINITY: Final = Dialect(
    name="infinity",
    paths=(*SHARED_PATHS, *_OWN_PATHS),
    document_fields=frozenset(["documents", "documents.content"]),
    body=InfinityBody,
    answer=InfinityAnswer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "raw_scores": True,
        "return_documents": True,
    },
    claims=has_field("raw_scores"),
)
