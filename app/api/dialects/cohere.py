"""Cohere's rerank API, version 2."""

from typing import Any, Final

from pydantic import BaseModel

from app.api.dialects.base import Dialect, Json
from app.api.dialects.superset import Result, SupersetCall, meta_of, results_of
from app.domain import RerankResult


class CohereV2Call(SupersetCall):
    def render(self, result: RerankResult, *, request_id: str) -> Json:
        return {
            "id": request_id,
            "results": results_of(result, self.documents, with_documents=bool(self.return_documents)),
            "meta": meta_of(result, documents=len(self.documents), version="2"),
        }


class CohereV2Answer(BaseModel):
    id: str
    results: list[Result]
    meta: dict[str, Any]


COHERE_V2: Final = Dialect(
    name="cohere-v2",
    paths=("/v2/rerank",),
    call=CohereV2Call,
    answer=CohereV2Answer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "top_n": 1,
    },
)
