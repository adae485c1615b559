"""The rerank API of text-embeddings-inference: `texts` go in, a bare list comes out."""

from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, FailFast, Field, RootModel

from rerankd.api.dialects.base import SHARED_PATHS, Dialect, Json, QueryCall, has_field
from rerankd.api.dialects.fields import ModelName, RawScores, ReturnDocuments, TopN, score_of
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, Side, Truncation


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class TeiCall(QueryCall):
    """`model` and `top_n` are not TEI's own: it serves one model and answers with all."""

    query: str
    texts: Annotated[list[str], FailFast()]
    raw_scores: RawScores = None
    return_text: ReturnDocuments = None
    truncate: bool | None = Field(
        default=None,
        # LiteLLM always sends false, and its users did not ask that a long text fail their call.
        description="True cuts a query and texts that are too long; else the model's own policy decides.",
    )
    truncation_direction: Annotated[Side | None, BeforeValidator(_lower)] = Field(
        default=None, description="Which end of a text is cut: `Left` or `Right` (default)."
    )
    model: ModelName = None
    top_n: TopN = None

    def to_request(self) -> RerankRequest:
        side = self.truncation_direction or Side.RIGHT
        return RerankRequest(
            query=self.query,
            documents=self.texts,
            model=self.model,
            top_n=self.top_n,
            options=ScoreOptions(
                # Whoever says which end is cut wants a cut, also of a model that reads long documents in passages.
                truncation=Truncation.TRUNCATE if self.truncate or side is Side.LEFT else None,
                truncation_side=side,
            ),
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> list[Json]:  # noqa: ARG002 - no place for it
        return [
            {
                "index": ranked.index,
                "score": score_of(ranked, raw=self.raw_scores),
                **({"text": self.texts[ranked.index]} if self.return_text else {}),
            }
            for ranked in result.results
        ]


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None


class TeiAnswer(RootModel[list[TeiRank]]):
    pass


TEI: Final = Dialect(
    name="tei",
    paths=SHARED_PATHS,
    takes=frozenset(["texts"]),
    cut_by="truncate: true",
    call=TeiCall,
    answer=TeiAnswer,
    example={
        "query": "What is the capital of France?",
        "texts": ["Berlin is in Germany.", "Paris is the capital of France."],
        "return_text": True,
    },
    claims=has_field("texts"),
)
