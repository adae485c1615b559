"""Jina's rerank API and Cohere's version 1: one superset, which vLLM, Xinference, Together and LocalAI also use."""

from typing import Any, Final

from pydantic import AliasChoices, BaseModel, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect
from rerankd.api.dialects.fields import usage_of
from rerankd.api.dialects.superset import Result, SupersetBody, meta_of
from rerankd.domain import RerankResult


class JinaBody(SupersetBody):
    use_activation: bool | None = Field(
        default=None,
        validation_alias=AliasChoices("use_activation", "activation"),
        description="vLLM's: false answers with the model's raw scores.",
    )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        return {
            "id": request_id,
            "object": "rerank",
            "model": result.model,
            "results": self.results(result, raw=self.use_activation is False),
            "usage": usage_of(result),
            "meta": meta_of(result, self.options(), version="1"),
        }


class JinaAnswer(BaseModel):
    id: str
    object: str
    model: str
    results: list[Result]
    usage: dict[str, int]
    meta: dict[str, Any]


# OpenVINO Model Server's, also as Cohere's client writes it, and DashScope's for clients of OpenAI.
_OTHER_PATHS: Final = ("/v3/rerank", "/v3/v1/rerank", "/compatible-api/v1/reranks")

JINA: Final = Dialect(
    name="jina",
    paths=(*SHARED_PATHS, *_OTHER_PATHS),
    document_fields=frozenset(["documents", "documents.content"]),
    body=JinaBody,
    answer=JinaAnswer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "top_n": 1,
        "return_documents": True,
    },
)
