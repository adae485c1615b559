"""Cohere's rerank API, version 2, with our own extensions: fields that Cohere's clients do not send."""

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, FailFast, Field, ValidationInfo, model_validator

from rerankd.api.dialects.base import Dialect, Json, limits_of
from rerankd.api.dialects.superset import Result, SupersetBody, meta_of
from rerankd.domain import (
    Aggregation,
    PassageWishes,
    RankedDocument,
    RerankRequest,
    RerankResult,
    ScoreOptions,
    Terms,
    Truncation,
    WindowWishes,
    check_overlap,
)
from rerankd.errors import RequestTooLarge


class PassageFields(BaseModel):
    """How a long document is read in passages; absent fields take the model's defaults."""

    tokens: int | None = Field(default=None, ge=16, description="Tokens per passage, at most the model's length.")
    overlap: int | None = Field(
        default=None, ge=0, description="Tokens that a passage shares with the previous one, at most half of `tokens`."
    )
    max_per_doc: int | None = Field(default=None, ge=1, description="Read at most this many passages of a document.")
    aggregation: Aggregation | None = Field(
        default=None, description="The document's score: the best passage's, the first's, or a mean of all or of top_k."
    )
    top_k: int | None = Field(default=None, ge=1, description="How many passages `top_k_mean` averages.")

    @model_validator(mode="after")
    def _overlap_fits(self) -> "PassageFields":
        check_overlap(tokens=self.tokens, overlap=self.overlap)
        return self


def _limit_length(order: object, info: ValidationInfo) -> object:
    if isinstance(order, list) and len(order) > limits_of(info).documents:
        raise RequestTooLarge(
            f"at most {limits_of(info).documents} documents per request; initial_order has {len(order)}"
        )
    return order


class WindowFields(BaseModel):
    """How a listwise model works through the documents, within the operator's limits; absent: as the operator set."""

    window: int | None = Field(default=None, description="Documents in one prompt.")
    stride: int | None = Field(default=None, description="By how many documents the sliding window moves.")
    schedule: str | None = Field(default=None, description="`sliding`, `full`, `top-down` or `tournament`.")
    depth: int | None = Field(default=None, description="Reorder only this many documents, from the first.")
    initial_order: Annotated[list[int] | None, FailFast(), BeforeValidator(_limit_length)] = Field(
        default=None, description="The indices of all documents, best first, as your retriever ranked them."
    )


class CohereV2Body(SupersetBody):
    min_score: float | None = Field(
        default=None, allow_inf_nan=False, description="Leave out results with a lower relevance score."
    )
    truncation: Truncation | None = Field(
        default=None,
        description="Documents that are too long: truncate them, reject the request, or read them in passages.",
    )
    passages: PassageFields | None = Field(default=None, description="How `chunk` reads; implies `truncation: chunk`.")
    instruction: Annotated[str | None, AfterValidator(lambda text: text or None)] = Field(
        default=None, description="What counts as relevant, for models that follow instructions."
    )
    windows: WindowFields | None = Field(default=None, description="For listwise models.")
    on_deadline: Literal["error", "partial"] | None = Field(
        default=None, description="What to return when the deadline passes: an error (default), or the scores so far."
    )
    explain: bool | None = Field(default=None, description="Add to each result where its score comes from.")

    def to_request(self) -> RerankRequest:
        return replace(super().to_request(), min_score=self.min_score)

    def options(self) -> ScoreOptions:
        fields = self.passages or PassageFields()
        chunked = self.passages is not None or self.max_chunks_per_doc is not None
        return ScoreOptions(
            max_tokens_per_doc=self.max_tokens_per_doc,
            truncation=self.truncation or (Truncation.CHUNK if chunked else None),
            passages=PassageWishes(
                tokens=fields.tokens,
                overlap=fields.overlap,
                max_passages=fields.max_per_doc or self.max_chunks_per_doc,
                aggregation=fields.aggregation,
                top_k=fields.top_k,
            ),
            instruction=self.instruction,
            windows=WindowWishes(**dict(self.windows)) if self.windows else None,
            terms=Terms(priority=self.priority or 0, partial=self.on_deadline == "partial"),
        )

    def result(self, ranked: RankedDocument, result: RerankResult, *, raw: bool | None = False) -> Json:
        entry = super().result(ranked, result, raw=raw)
        return entry | {"explain": _explain(ranked, result)} if self.explain else entry

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        meta = meta_of(result, self.options(), version="2")
        cut = np.flatnonzero(result.scores.dropped).tolist()
        if cut:
            meta["truncated_documents"] = [
                {"index": index, "dropped_tokens": int(result.scores.dropped[index])} for index in cut
            ]
        return {"id": request_id, "results": self.results(result), "meta": meta}


def _explain(ranked: RankedDocument, result: RerankResult) -> Json:
    scores = result.scores
    return {
        "stage": ranked.placed_by or result.scorer,
        "score": ranked.value,
        "cached": scores.cached is not None and bool(scores.cached[ranked.index]),
        "tokens": int(scores.tokens[ranked.index]),
        "dropped_tokens": int(scores.dropped[ranked.index]),
    }


class Explanation(BaseModel):
    """`score` is the raw one; a `cached` score did not reach the model this time."""

    stage: str
    score: float
    cached: bool
    tokens: int
    dropped_tokens: int


class CohereV2Result(Result):
    explain: Explanation | None = None


class CohereV2Answer(BaseModel):
    id: str
    results: list[CohereV2Result]
    meta: dict[str, Any]


COHERE_V2: Final = Dialect(
    name="cohere-v2",
    paths=("/v2/rerank",),
    document_fields=frozenset(["documents"]),
    truncation_hint='truncation: "truncate"',
    body=CohereV2Body,
    answer=CohereV2Answer,
    example={
        "model": "minilm-qa",
        "query": "What is the capital of France?",
        "documents": ["Berlin is in Germany.", "Paris is the capital of France."],
        "top_n": 1,
    },
)
