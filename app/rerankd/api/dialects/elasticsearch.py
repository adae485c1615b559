"""What Elasticsearch's inference service `hugging_face` sends to any URL: the answer is a bare list. It refuses fields
that it does not know.
"""

from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, RootModel

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect
from rerankd.api.dialects.superset import SupersetBody
from rerankd.domain import RerankResult


class ElasticsearchBody(SupersetBody):
    """Elasticsearch's fields are `query`, `documents`, `return_documents`, `top_n` and `max_chunks_per_doc`."""

    def render_result(self, result: RerankResult, *, request_id: str) -> Iterator[Json]:  # noqa: ARG002 - no place for it
        return (
            {
                "index": ranked.index,
                "relevance_score": ranked.relevance_score,
                **({"text": self.texts[ranked.index]} if self.return_documents else {}),
            }
            for ranked in result.results
        )


class ElasticsearchResult(BaseModel):
    index: int
    relevance_score: float
    text: str | None = None


class ElasticsearchAnswer(RootModel[list[ElasticsearchResult]]):
    pass


# A body looks like Jina's, whose answer is an object.
ELASTICSEARCH: Final = Dialect(
    name="elasticsearch",
    paths=("/elastic/rerank", "/elastic/v1/rerank"),
    document_fields=frozenset(["documents"]),
    body=ElasticsearchBody,
    answer=ElasticsearchAnswer,
    example={
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "return_documents": True,
        "top_n": 1,
    },
)
