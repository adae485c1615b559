"""Mixedbread's reranking API: documents are its `input`, and the answer repeats `top_k`."""

from typing import Any, Final, Literal

from pydantic import BaseModel

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect, has_field
from rerankd.api.dialects.fields import (
    Documents,
    ModelName,
    RankFields,
    ReturnDocuments,
    TextsBody,
    TopN,
    texts_of,
    usage_of,
)
from rerankd.concurrency.slices import Sliced
from rerankd.domain import RerankRequest, RerankResult


class MixedbreadBody(TextsBody):
    model: ModelName = None
    query: str
    input: Documents
    rank_fields: RankFields = None
    top_k: TopN = None
    return_input: ReturnDocuments = None

    def read_texts(self) -> Sliced[list[str]]:
        return texts_of(self.input, self.raw_body, rank_fields=self.rank_fields, name="input")

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query,
            documents=self.texts,
            model=self.model,
            top_n=self.top_k,
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        return {
            "object": "list",
            "id": request_id,
            "model": result.model,
            "data": (
                {
                    "object": "rank_result",
                    "index": ranked.index,
                    "score": ranked.relevance_score,
                    **({"input": self._as_sent(ranked.index)} if self.return_input else {}),
                }
                for ranked in result.results
            ),
            "top_k": len(result.results),
            "return_input": bool(self.return_input),
            "usage": usage_of(result),
        }

    def _as_sent(self, index: int) -> Any:  # noqa: ANN401 - what was sent
        document = self.input[index]
        return document if isinstance(document, str) else self.raw_body.entry("input", index)


class MixedbreadResult(BaseModel):
    object: Literal["rank_result"]
    index: int
    score: float
    input: Any | None = None


class MixedbreadAnswer(BaseModel):
    object: Literal["list"]
    model: str
    data: list[MixedbreadResult]
    top_k: int
    return_input: bool
    usage: dict[str, int]


MIXEDBREAD: Final = Dialect(
    name="mixedbread",
    paths=("/v1/reranking", "/reranking", *SHARED_PATHS),
    document_fields=frozenset(["input"]),
    body=MixedbreadBody,
    answer=MixedbreadAnswer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "input": ["Berlin is in Germany.", "Paris is the capital of France."],
        "top_k": 1,
        "return_input": True,
    },
    claims=has_field("input"),
)
