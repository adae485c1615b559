"""DashScope's own rerank API: `input` and `parameters` go in, `output` comes out. The API that it offers besides, with
Jina's words, is Jina's here too.
"""

from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, FailFast, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect, QueryBody
from rerankd.api.dialects.fields import Instruction, ModelName, ReturnDocuments, TopN
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions


def _text(document: object) -> object:
    """Its models that read images take documents as objects."""
    return document["text"] if isinstance(document, dict) and "text" in document else document


class DashscopeInput(BaseModel):
    query: Annotated[str, BeforeValidator(_text)]
    documents: Annotated[list[Annotated[str, BeforeValidator(_text)]], FailFast()]


class DashscopeParameters(BaseModel):
    top_n: TopN = None
    return_documents: ReturnDocuments = None
    instruction: Instruction = None


class DashscopeBody(QueryBody):
    model: ModelName = None
    input: DashscopeInput
    parameters: DashscopeParameters | None = Field(default=None)

    @property
    def _wishes(self) -> DashscopeParameters:
        return self.parameters or DashscopeParameters()

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.input.query,
            documents=self.input.documents,
            model=self.model,
            top_n=self._wishes.top_n,
            options=ScoreOptions(instruction=self._wishes.instruction),
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        with_documents = self._wishes.return_documents
        return {
            "output": {
                "results": [
                    {
                        "index": ranked.index,
                        "relevance_score": ranked.relevance_score,
                        **({"document": {"text": self.input.documents[ranked.index]}} if with_documents else {}),
                    }
                    for ranked in result.results
                ]
            },
            "usage": {"total_tokens": result.tokens},
            "request_id": request_id,
        }


class DashscopeDocument(BaseModel):
    text: str


class DashscopeResult(BaseModel):
    index: int
    relevance_score: float
    document: DashscopeDocument | None = None


class DashscopeOutput(BaseModel):
    results: list[DashscopeResult]


class DashscopeAnswer(BaseModel):
    output: DashscopeOutput
    usage: dict[str, int]
    request_id: str


DASHSCOPE: Final = Dialect(
    name="dashscope",
    paths=("/api/v1/services/rerank/text-rerank/text-rerank",),
    document_fields=frozenset(["input.documents"]),
    body=DashscopeBody,
    answer=DashscopeAnswer,
    example={
        "model": "minilm-qa",
        "input": {
            "query": "What is the capital of France?",
            "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        },
        "parameters": {"return_documents": True, "top_n": 1},
    },
)
