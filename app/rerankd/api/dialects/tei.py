"""The rerank API of text-embeddings-inference: `texts` go in, a bare list comes out."""

from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, FailFast, Field, RootModel

from rerankd.api.answers import Json
from rerankd.api.dialects.base import SHARED_PATHS, Dialect, QueryBody, has_field
from rerankd.api.dialects.fields import ModelName, RawScores, ReturnDocuments, TopN, score_of
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, Side, Truncation


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class TruncatingFields(BaseModel):
    """How TEI is told to cut texts that are too long."""

    truncate: bool | None = Field(
        default=None,
        # LiteLLM always sends false; its users did not ask for an error when a text is too long.
        description="True truncates a query and texts that are too long; otherwise the model's own policy applies.",
    )
    truncation_direction: Annotated[Side | None, BeforeValidator(_lower)] = Field(
        default=None, description="Which end of a text is truncated: `Left` or `Right` (default)."
    )

    def truncating(self) -> ScoreOptions:
        """The options that these fields say."""
        side = self.truncation_direction or Side.RIGHT
        return ScoreOptions(
            # A client that names the end wants truncation, even from a model that reads documents in passages.
            truncation=Truncation.TRUNCATE if self.truncate or side is Side.LEFT else None,
            truncation_side=side,
        )


class TeiBody(TruncatingFields, QueryBody):
    """`model` and `top_n` are our additions: TEI serves one model and returns all results."""

    query: str
    texts: Annotated[list[str], FailFast()]
    raw_scores: RawScores = None
    return_text: ReturnDocuments = None
    model: ModelName = None
    top_n: TopN = None

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query,
            documents=self.texts,
            model=self.model,
            top_n=self.top_n,
            options=self.truncating(),
        )

    def render_result(self, result: RerankResult, *, request_id: str) -> Iterator[Json]:  # noqa: ARG002 - no place for it
        return (
            {
                "index": ranked.index,
                "score": score_of(ranked, raw=self.raw_scores),
                **({"text": self.texts[ranked.index]} if self.return_text else {}),
            }
            for ranked in result.results
        )


class TeiRank(BaseModel):
    index: int
    score: float
    text: str | None = None


class TeiAnswer(RootModel[list[TeiRank]]):
    pass


TEI: Final = Dialect(
    name="tei",
    paths=SHARED_PATHS,
    document_fields=frozenset(["texts"]),
    truncation_hint="truncate: true",
    body=TeiBody,
    answer=TeiAnswer,
    example={
        "query": "What is the capital of France?",
        "texts": ["Berlin is in Germany.", "Paris is the capital of France."],
        "return_text": True,
    },
    claims=has_field("texts"),
)
