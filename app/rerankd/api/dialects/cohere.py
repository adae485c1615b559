"""Cohere's rerank API, version 2, with our own extensions: fields that Cohere's clients do not send."""

from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, FailFast, Field, ValidationInfo, model_validator

from rerankd.api.answers import Json
from rerankd.api.dialects.base import Dialect, limits_of
from rerankd.api.dialects.superset import Result, SupersetBody, meta_of
from rerankd.domain import (
    ConfidencePlan,
    DiversityWishes,
    Document,
    FusionWishes,
    PassageWishes,
    QueryMode,
    QueryWishes,
    RankedDocument,
    RerankRequest,
    RerankResult,
    ScoreOptions,
    Scores,
    SpanWishes,
    Truncation,
    WindowWishes,
)
from rerankd.errors import RequestTooLarge


class RelevantSpans(BaseModel):
    """Cohere's wish for the parts of documents that are relevant."""

    mode: Literal["enabled", "disabled"]
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="Only spans of a higher relevance; default: 0.1."
    )
    max_spans: int | None = Field(default=None, ge=1, description="At most this many spans of a document.")

    def wishes(self) -> SpanWishes | None:
        if self.mode == "disabled":
            return None
        wishes = SpanWishes(most=self.max_spans)
        return wishes if self.threshold is None else replace(wishes, threshold=self.threshold)


class QueryFusion(BaseModel):
    """How the scores for several queries become one."""

    mode: QueryMode | None = Field(default=None, description="`rrf` (default), `max` or `mean`.")
    weights: Annotated[list[float] | None, FailFast()] = Field(
        default=None, description="What each query counts, `query` first; default: the same."
    )


def _limited(queries: object, info: ValidationInfo) -> object:
    if isinstance(queries, list) and len(queries) > limits_of(info).queries:
        raise RequestTooLarge(f"at most {limits_of(info).queries} further queries per request; got {len(queries)}")
    return queries


class CohereV2Body(SupersetBody):
    min_score: float | None = Field(
        default=None, allow_inf_nan=False, description="Leave out results with a lower relevance score."
    )
    truncation: Truncation | None = Field(
        default=None,
        description="Documents that are too long: truncate them, reject the request, read them in passages, or read "
        "the sentences that speak of the query.",
    )
    passages: PassageWishes | None = Field(default=None, description="How `chunk` reads; implies `truncation: chunk`.")
    windows: WindowWishes | None = Field(default=None, description="For listwise models.")
    relevant_spans: RelevantSpans | None = Field(
        default=None, description="Add to each result which of its sentences are relevant."
    )
    queries: Annotated[list[str] | None, FailFast(), BeforeValidator(_limited)] = Field(
        default=None, description="Further queries, such as rewrites or sub-questions; all give one order."
    )
    query_fusion: QueryFusion | None = Field(default=None, description="How several queries give one order.")
    evidence: Annotated[list[str] | None, FailFast()] = Field(
        default=None, description="Texts that are chosen already: each query is read with them behind it."
    )
    fusion: FusionWishes | None = Field(
        default=None, description="Order by the model's scores and your first stage's together."
    )
    diversity: DiversityWishes | None = Field(
        default=None, description="Order the most relevant documents so that none is much like those before it (MMR)."
    )
    confidence: ConfidencePlan | None = Field(
        default=None, description="How sure the model is of its order, and below which threshold the answer abstains."
    )
    on_deadline: Literal["error", "partial", "depth"] | None = Field(
        default=None,
        description="What to return when the deadline passes: an error (default), the scores so far (`partial`), or "
        "those of as many documents as should fit (`depth`).",
    )
    explain: bool | None = Field(default=None, description="Add to each result where its score comes from.")

    @model_validator(mode="after")
    def _check_queries(self, info: ValidationInfo) -> Self:
        if self.query_fusion is not None and not self.queries:
            raise ValueError("query_fusion joins several queries, and there is one; add queries, or leave it out")
        # Each query gets a copy of all evidence, so this is checked before they are made.
        evidence = sum(len(text) + 1 for text in self.evidence or ())
        longest = evidence + max(map(len, self.queries or ()), default=0)
        if longest > limits_of(info).query_chars:
            raise RequestTooLarge(
                f"at most {limits_of(info).query_chars} characters in a query with its evidence; got {longest}"
            )
        return self

    def to_request(self) -> RerankRequest:
        request = super().to_request()
        return replace(request, query=self._with_evidence(request.query), min_score=self.min_score)

    def options(self) -> ScoreOptions:
        options = super().options()
        passages = self.passages or PassageWishes()
        chunked = Truncation.CHUNK if self.passages is not None else None
        return replace(
            options,
            truncation=self.truncation or options.truncation or chunked,
            passages=replace(passages, max_passages=passages.max_passages or self.max_chunks_per_doc),
            windows=self.windows,
            fusion=self.fusion,
            diversity=self.diversity,
            queries=self._wishes_for_queries(),
            confidence=self.confidence,
            spans=self.relevant_spans.wishes() if self.relevant_spans else None,
            terms=replace(options.terms, partial=self.on_deadline in ("partial", "depth")),
            budgeted=self.on_deadline == "depth",
        )

    def _with_evidence(self, query: str) -> str:
        if not self.evidence:
            return query
        text = "\n".join([query, *self.evidence])
        return Document(text, image=query.image) if isinstance(query, Document) else text

    def _wishes_for_queries(self) -> QueryWishes | None:
        if not self.queries:
            return None
        fusion = self.query_fusion or QueryFusion()
        others = [self._with_evidence(query) for query in self.queries]
        return QueryWishes(others=others, mode=fusion.mode or QueryMode.RRF, weights=fusion.weights)

    @property
    def reads_otherwise(self) -> bool:
        other = self.truncation not in (None, Truncation.TRUNCATE) or self.passages is not None
        return other or super().reads_otherwise

    def _tells_more(self, result: RerankResult) -> bool:
        return bool(self.explain) or result.scores.spans is not None or super()._tells_more(result)

    def result(self, ranked: RankedDocument, result: RerankResult, *, raw: bool | None = False) -> Json:
        entry = super().result(ranked, result, raw=raw)
        spans = None if result.scores.spans is None else result.scores.spans[ranked.index]
        if spans:
            entry["relevant_spans"] = [
                {"start": span.start, "end": span.end, "score": span.relevance} for span in spans
            ]
        return entry | {"explain": _explain(ranked, result)} if self.explain else entry

    def render_result(self, result: RerankResult, *, request_id: str) -> Json:
        meta = meta_of(result, self.options(), version="2")
        fused = result.scores.fused
        if fused is not None and fused.of_first_stage:
            meta["fusion"] = {"mode": fused.plan.mode, "weight": fused.plan.weight}
        if fused is not None and fused.diversity is not None:
            meta["diversity"] = {"weight": fused.diversity.weight, "depth": fused.diversity.depth}
        if self.on_deadline == "depth" and "on_deadline" not in result.ignored:
            meta["depth"] = len(result.scores) - result.unscored_documents
        if result.scores.cuts is not None:
            meta["cuts"] = result.scores.cuts
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
        **({} if ranked.own_relevance is None else {"relevance": ranked.own_relevance}),
        "cached": scores.cached is not None and bool(scores.cached[ranked.index]),
        "tokens": int(scores.tokens[ranked.index]),
        "dropped_tokens": int(scores.dropped[ranked.index]),
        **_remark(scores, ranked.index),
    }


def _remark(scores: Scores, index: int) -> Json:
    remark = None if scores.remarks is None else scores.remarks[index]
    if remark is None:
        return {}
    return {"reason": remark.reason} | ({"criteria": remark.grades} if remark.grades else {})


class Explanation(BaseModel):
    """`score` is the raw one, `relevance` what the model makes of it where the result's is a fused one; a `cached`
    score did not reach the model this time. `reason` is the beginning of what a model wrote, `criteria` its grades.
    """

    stage: str
    score: float
    relevance: float | None = None
    cached: bool
    tokens: int
    dropped_tokens: int
    reason: str | None = None
    criteria: dict[str, float] | None = None


class RelevantSpan(BaseModel):
    """Characters `[start, end)` of the text that the model read, in Unicode code points."""

    start: int
    end: int
    score: float


class CohereV2Result(Result):
    relevant_spans: list[RelevantSpan] | None = None
    explain: Explanation | None = None


class CohereV2Answer(BaseModel):
    id: str
    results: list[CohereV2Result]
    meta: dict[str, Any]


COHERE_V2: Final = Dialect(
    name="cohere-v2",
    paths=("/v2/rerank", "/v3/v2/rerank"),
    document_fields=frozenset(["documents", "documents.content"]),
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
