"""SGLang's rerank API: a bare list of scores with their documents."""

from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, RootModel

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect
from rerankd.api.dialects.superset import SupersetBody
from rerankd.domain import RerankResult


class SglangBody(SupersetBody):
    """SGLang's fields are `query`, `documents`, `instruct`, `top_n` and `return_documents`."""

    def render_result(self, result: RerankResult, *, request_id: str) -> Iterator[Json]:  # noqa: ARG002 - no place for it
        # Unlike other servers, SGLang returns documents unless the request says not to.
        with_documents = self.return_documents is not False
        return (
            {
                "score": ranked.relevance_score,
                **({"document": self.texts[ranked.index]} if with_documents else {}),
                "index": ranked.index,
            }
            for ranked in result.results
        )


class SglangResult(BaseModel):
    score: float
    document: str | None = None
    index: int


class SglangAnswer(RootModel[list[SglangResult]]):
    pass


# A body looks like Jina's, whose answer is an object.
SGLANG: Final = Dialect(
    name="sglang",
    paths=("/sglang/rerank", "/sglang/v1/rerank"),
    document_fields=frozenset(["documents"]),
    body=SglangBody,
    answer=SglangAnswer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "top_n": 1,
    },
)
