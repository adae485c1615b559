"""Jina's rerank API and Cohere's version 1: one superset, which vLLM, Xinference, Together and LocalAI speak too."""

from typing import Any, Final

from pydantic import BaseModel

from app.api.dialects.base import Dialect, Json
from app.api.dialects.superset import Result, SupersetCall, meta_of, results_of
from app.domain import RerankResult


class JinaCall(SupersetCall):
    def render(self, result: RerankResult, *, request_id: str) -> Json:
        return {
            "id": request_id,
            "object": "rerank",
            "model": result.model,
            "results": results_of(result, self.documents, with_documents=bool(self.return_documents)),
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
            "meta": meta_of(result, documents=len(self.documents), version="1"),
        }


class JinaAnswer(BaseModel):
    id: str
    object: str
    model: str
    results: list[Result]
    usage: dict[str, int]
    meta: dict[str, Any]


JINA: Final = Dialect(
    name="jina",
    paths=("/v1/rerank", "/rerank"),
    call=JinaCall,
    answer=JinaAnswer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "top_n": 1,
        "return_documents": True,
    },
)
