"""Cohere's rerank API, version 2, with our own extensions: fields that Cohere's clients do not send."""

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect, limits_of
from rerankd.api.dialects.superset import Result, SupersetBody, meta_of
from rerankd.domain import (
    PassageWishes,
    RankedDocument,
    RerankRequest,
    RerankResult,
    ScoreOptions,
    Terms,
    Truncation,
    WindowWishes,
)
from rerankd.errors import RequestTooLarge


def _limit_order(windows: object, info: ValidationInfo) -> object:
    order = windows.get("initial_order") if isinstance(windows, dict) else None
    if isinstance(order, list) and len(order) > limits_of(info).documents:
        raise RequestTooLarge(
            f"at most {limits_of(info).documents} documents per request; initial_order has {len(order)}"
        )
    return windows


class CohereV2Body(SupersetBody):
    min_score: float | None = Field(
        default=None, allow_inf_nan=False, description="Leave out results with a lower relevance score."
    )
    truncation: Truncation | None = Field(
        default=None,
        description="Documents that are too long: truncate them, reject the request, or read them in passages.",
    )
    passages: PassageWishes | None = Field(default=None, description="How `chunk` reads; implies `truncation: chunk`.")
    instruction: Annotated[str | None, AfterValidator(lambda text: text or None)] = Field(
        default=None, description="What counts as relevant, for models that follow instructions."
    )
    windows: Annotated[WindowWishes | None, BeforeValidator(_limit_order)] = Field(
        default=None, description="For listwise models."
    )
    on_deadline: Literal["error", "partial"] | None = Field(
        default=None, description="What to return when the deadline passes: an error (default), or the scores so far."
    )
    explain: bool | None = Field(default=None, description="Add to each result where its score comes from.")

    def to_request(self) -> RerankRequest:
        return replace(super().to_request(), min_score=self.min_score)

    def options(self) -> ScoreOptions:
        passages = self.passages or PassageWishes()
        chunked = self.passages is not None or self.max_chunks_per_doc is not None
        return ScoreOptions(
            max_tokens_per_doc=self.max_tokens_per_doc,
            truncation=self.truncation or (Truncation.CHUNK if chunked else None),
            passages=replace(passages, max_passages=passages.max_passages or self.max_chunks_per_doc),
            instruction=self.instruction,
            windows=self.windows,
            terms=Terms(priority=self.priority or 0, partial=self.on_deadline == "partial"),
        )

    def _tells_more(self, result: RerankResult) -> bool:
        return bool(self.explain) or super()._tells_more(result)

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
