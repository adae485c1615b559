"""What the dialects of Cohere and Jina have in common: the request, and most of the answer."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.fields import (
    PASSED_THROUGH,
    Documents,
    MaxTokens,
    ModelName,
    Priority,
    RankFields,
    ReturnDocuments,
    TextsBody,
    TopN,
    score_of,
    search_units,
    texts_of,
)
from rerankd.concurrency.slices import Sliced
from rerankd.domain import PassageWishes, RankedDocument, RerankRequest, RerankResult, ScoreOptions, Terms, Truncation


class SupersetBody(TextsBody):
    """The request fields of both; each dialect adds its answer."""

    model: ModelName = None
    query: str
    documents: Documents
    top_n: TopN = None
    max_tokens_per_doc: MaxTokens = None
    max_chunks_per_doc: int | None = Field(
        default=None, ge=1, description="Read long documents in at most this many passages; the best one counts."
    )
    rank_fields: RankFields = None
    return_documents: ReturnDocuments = None
    priority: Priority = None

    def read_texts(self) -> Sliced[list[str]]:
        return texts_of(self.documents, self.raw_body, rank_fields=self.rank_fields)

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query,
            documents=self.texts,
            model=self.model,
            top_n=self.top_n,
            options=self.options(),
        )

    def options(self) -> ScoreOptions:
        return ScoreOptions(
            max_tokens_per_doc=self.max_tokens_per_doc,
            truncation=Truncation.CHUNK if self.max_chunks_per_doc else None,
            passages=PassageWishes(max_passages=self.max_chunks_per_doc),
            terms=Terms(priority=self.priority or 0),
        )

    def results(self, result: RerankResult, *, raw: bool | None = False) -> Iterator[Json]:
        if self._tells_more(result):
            return (self.result(ranked, result, raw=raw) for ranked in result.results)
        if raw:
            return ({"index": ranked.index, "relevance_score": ranked.value} for ranked in result.results)
        return ({"index": ranked.index, "relevance_score": ranked.relevance_score} for ranked in result.results)

    def _tells_more(self, result: RerankResult) -> bool:
        """Whether a result has more than its index and its score."""
        scores = result.scores
        known = scores.scored, scores.placed_by, scores.passages
        return bool(self.return_documents or self.raw_body.size) or any(array is not None for array in known)

    def result(self, ranked: RankedDocument, result: RerankResult, *, raw: bool | None = False) -> Json:
        """One entry of `results`, with the fields to return of its document. No field is null."""
        document = self.documents[ranked.index]
        entry: Json = {"index": ranked.index, "relevance_score": score_of(ranked, raw=raw)}
        if isinstance(document, Mapping):
            given = [name for name in PASSED_THROUGH if name in document]
            entry |= {name: self.raw_body.value("documents", ranked.index, name, document[name]) for name in given}
        if ranked.placed_by:
            entry["placed_by"] = ranked.placed_by
        if not ranked.scored:
            entry["scored"] = False
        if self.return_documents:
            is_text = isinstance(document, str)
            entry["document"] = {"text": document} if is_text else self.raw_body.entry("documents", ranked.index)
        passages = result.scores.passages
        if passages is not None and passages.counts[ranked.index]:
            entry["passage"] = {
                "start": int(passages.starts[ranked.index]),
                "end": int(passages.ends[ranked.index]),
                "count": int(passages.counts[ranked.index]),
            }
        return entry


def meta_of(result: RerankResult, options: ScoreOptions, *, version: str) -> Json:
    meta: Json = {
        "api_version": {"version": version},
        "billed_units": {"search_units": search_units(result)},
        "tokens": {"input_tokens": result.tokens},
    }
    warnings = _warnings(result, options)
    if warnings:
        meta["warnings"] = warnings
    return meta


def _warnings(result: RerankResult, options: ScoreOptions) -> list[str]:
    warnings = []
    if result.fallback_for:
        warnings.append(f"the model {result.fallback_for!r} could not answer; {result.model!r} did")
    if result.truncated_documents:
        what = f"longer than {_limit(result, options)} allows"
        warnings.append(
            f"{_documents_were(result.truncated_documents)} {what}: {_tokens(result.dropped_tokens)} not read"
        )
    if result.scores.query_dropped:
        warnings.append(f"the query was too long: {_tokens(result.scores.query_dropped)} of it not read")
    if result.unscored_documents:
        warnings.append(
            f"{_documents_were(result.unscored_documents)} not scored before the deadline, and are in your order"
        )
    if result.scores.unordered:
        what = "1 window" if result.scores.unordered == 1 else f"{result.scores.unordered} windows"
        warnings.append(f"the model named no document of {what}, which kept the order it was given; ask again")
    return warnings


def _limit(result: RerankResult, options: ScoreOptions) -> str:
    """The name of the limit that cut documents, whether they are read whole or in passages."""
    if result.scores.passages is None:
        limit = "the model"
    elif options.passages.max_passages is None:
        limit = "the model's max_passages"
    else:
        limit = "max_chunks_per_doc (or passages.max_per_doc)"
    return f"{limit} or max_tokens_per_doc" if options.max_tokens_per_doc is not None else limit


def _tokens(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def _documents_were(documents: int) -> str:
    return "1 document was" if documents == 1 else f"{documents} documents were"


class Passage(BaseModel):
    """The characters of the best passage in the text that the model read, and the number of passages."""

    start: int
    end: int
    count: int


class Result(BaseModel):
    index: int
    relevance_score: float
    scored: bool | None = None
    placed_by: str | None = None
    id: Any | None = None
    metadata: Any | None = None
    document: dict[str, Any] | None = None
    passage: Passage | None = None
