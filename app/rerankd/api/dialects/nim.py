"""The ranking API of NVIDIA NIM: passages go in, raw scores come out as logits."""

from typing import Annotated, Final, Literal

from pydantic import AliasChoices, BaseModel, FailFast, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect, QueryBody, has_field
from rerankd.api.dialects.fields import LimitedFields, ModelName, TopN, truncation_of, usage_of
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions


class NimText(BaseModel):
    text: str


class NimBody(QueryBody):
    model: ModelName = None
    query: NimText | str
    passages: Annotated[list[NimText], FailFast(), LimitedFields]
    truncate: Literal["NONE", "END"] | None = Field(
        default=None, description="NONE rejects a passage that is too long, END truncates it (default)."
    )
    top_n: TopN = Field(default=None, validation_alias=AliasChoices("top_n", "top_k"))

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query if isinstance(self.query, str) else self.query.text,
            documents=[passage.text for passage in self.passages],
            model=self.model,
            top_n=self.top_n,
            options=ScoreOptions(truncation=truncation_of(cut=self.truncate and self.truncate == "END")),
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        return {
            "id": request_id,
            "model": result.model,
            "rankings": ({"index": ranked.index, "logit": ranked.value} for ranked in result.results),
            "usage": usage_of(result),
        }


class NimRanking(BaseModel):
    index: int
    logit: float


class NimAnswer(BaseModel):
    model: str
    rankings: list[NimRanking]
    usage: dict[str, int]


NIM: Final = Dialect(
    name="nim",
    paths=("/v1/ranking", "/ranking", "/v1/retrieval/{model:path}/reranking", *SHARED_PATHS),
    document_fields=frozenset(["passages"]),
    truncation_hint='truncate: "END"',
    body=NimBody,
    answer=NimAnswer,
    example={
        "model": "minilm-qa",
        "query": {"text": "What is the capital of France?"},
        "passages": [{"text": "Berlin is in Germany."}, {"text": "Paris is the capital of France."}],
        "truncate": "END",
    },
    claims=has_field("passages"),
)
