"""Amazon Bedrock's rerank API: one query and its sources go in, deeply nested; scores come out."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, FailFast, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect, has_field
from rerankd.api.dialects.fields import LimitedFields, ModelName, TextsBody, TopN, texts_of
from rerankd.concurrency.slices import Sliced
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import InvalidRequest


class BedrockText(BaseModel):
    text: str


class BedrockQuery(BaseModel):
    type: str | None = None
    textQuery: BedrockText  # noqa: N815 - Amazon's name


class BedrockDocument(BaseModel):
    type: str | None = None
    textDocument: BedrockText | None = None  # noqa: N815 - Amazon's name
    jsonDocument: dict[str, Any] | None = None  # noqa: N815 - Amazon's name


class BedrockSource(BaseModel):
    type: str | None = None
    inlineDocumentSource: BedrockDocument  # noqa: N815 - Amazon's name

    @property
    def document(self) -> str | dict[str, Any] | None:
        text = self.inlineDocumentSource.textDocument
        return self.inlineDocumentSource.jsonDocument if text is None else text.text


class BedrockModel(BaseModel):
    modelArn: str | None = Field(default=None, description="The name of a served model, which may follow a `/`.")  # noqa: N815 - Amazon's name


class BedrockModelConfiguration(BaseModel):
    modelConfiguration: BedrockModel = BedrockModel()  # noqa: N815 - Amazon's name
    numberOfResults: TopN = None  # noqa: N815 - Amazon's name


class BedrockConfiguration(BaseModel):
    type: str | None = None
    bedrockRerankingConfiguration: BedrockModelConfiguration = BedrockModelConfiguration()  # noqa: N815 - Amazon's name


class BedrockBody(TextsBody):
    model: ModelName = Field(default=None, description="Our addition; it goes before `modelArn`.")
    queries: Annotated[list[BedrockQuery], FailFast(), LimitedFields]
    sources: Annotated[list[BedrockSource], FailFast(), LimitedFields]
    rerankingConfiguration: BedrockConfiguration = BedrockConfiguration()  # noqa: N815 - Amazon's name

    def read_texts(self) -> Sliced[list[str]]:
        return texts_of([source.document for source in self.sources], None, rank_fields=None, name="sources")

    def to_request(self) -> RerankRequest:
        if len(self.queries) != 1:
            raise InvalidRequest(f"queries must hold one query; got {len(self.queries)}")
        chosen = self.rerankingConfiguration.bedrockRerankingConfiguration
        arn = self.model or chosen.modelConfiguration.modelArn or ""
        return RerankRequest(
            query=self.queries[0].textQuery.text,
            documents=self.texts,
            model=arn.rpartition("/")[2] if arn.startswith("arn:") else arn or None,
            top_n=chosen.numberOfResults,
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:  # noqa: ARG002 - no place for it
        return {
            "results": ({"index": ranked.index, "relevanceScore": ranked.relevance_score} for ranked in result.results)
        }


class BedrockResult(BaseModel):
    index: int
    relevanceScore: float  # noqa: N815 - Amazon's name


class BedrockAnswer(BaseModel):
    results: list[BedrockResult]


def _source(text: str) -> Json:
    return {"type": "INLINE", "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": text}}}


BEDROCK: Final = Dialect(
    name="bedrock",
    paths=SHARED_PATHS,
    document_fields=frozenset(["sources"]),
    body=BedrockBody,
    answer=BedrockAnswer,
    example={
        "queries": [{"type": "TEXT", "textQuery": {"text": "What is the capital of France?"}}],
        "sources": [_source("Berlin is in Germany."), _source("Paris is the capital of France.")],
        "rerankingConfiguration": {
            "type": "BEDROCK_RERANKING_MODEL",
            "bedrockRerankingConfiguration": {"numberOfResults": 1},
        },
    },
    claims=has_field("sources"),
)
