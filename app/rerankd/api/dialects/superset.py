"""What the dialects of Cohere and Jina have in common: the request, and most of the answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field

from rerankd.api.answers import Json
from rerankd.api.dialects.fields import (
    PASSED_THROUGH,
    ModelName,
    RankFields,
    ReadingFields,
    ReturnDocuments,
    TopN,
    score_of,
    search_units,
)
from rerankd.api.dialects.illustrated import IllustratedBody
from rerankd.api.dialects.images import Content
from rerankd.domain import (
    PassageWishes,
    PruneWishes,
    RankedDocument,
    RerankRequest,
    RerankResult,
    ScoreOptions,
    Truncation,
)
from rerankd.errors import InvalidRequest


class SupersetBody(ReadingFields, IllustratedBody):
    """The request fields of both; each dialect adds its answer."""

    model: ModelName = None
    top_n: TopN = None
    max_chunks_per_doc: int | None = Field(
        default=None, ge=1, description="Read long documents in at most this many passages; the best one counts."
    )
    rank_fields: RankFields = None
    prune: bool | PruneWishes | None = Field(
        default=None,
        description="Add to each result its text without the sentences that do not help; for Provence.",
    )
    return_documents: ReturnDocuments = None

    @property
    def fields_to_read(self) -> Sequence[str] | None:
        return self.rank_fields

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query_text,
            documents=self.texts,
            model=self.model,
            top_n=self.top_n,
            options=self.options(),
        )

    def options(self) -> ScoreOptions:
        reading = self.reading()
        if self.truncate_prompt_tokens is not None and self.reads_otherwise:
            raise InvalidRequest(
                "truncate_prompt_tokens truncates documents, which the request wants to be read in another way; leave "
                "it out, or use max_tokens_per_doc"
            )
        chunked = Truncation.CHUNK if self.max_chunks_per_doc else None
        return replace(
            reading,
            truncation=reading.truncation or chunked,
            passages=PassageWishes(max_passages=self.max_chunks_per_doc),
            prune=PruneWishes() if self.prune is True else self.prune or None,
        )

    @property
    def reads_otherwise(self) -> bool:
        """Whether the request names another policy for long documents than to truncate them."""
        return self.max_chunks_per_doc is not None

    def results(self, result: RerankResult, *, raw: bool | None = False) -> Iterator[Json]:
        if self._tells_more(result):
            return (self.result(ranked, result, raw=raw) for ranked in result.results)
        if raw:
            return ({"index": ranked.index, "relevance_score": ranked.value} for ranked in result.results)
        return ({"index": ranked.index, "relevance_score": ranked.relevance_score} for ranked in result.results)

    def _tells_more(self, result: RerankResult) -> bool:
        """Whether a result has more than its index and its score."""
        scores = result.scores
        known = scores.scored, scores.placed_by, scores.passages, scores.kept
        return bool(self.return_documents or self.raw_body.size) or any(array is not None for array in known)

    def result(self, ranked: RankedDocument, result: RerankResult, *, raw: bool | None = False) -> Json:
        """One entry of `results`, with the fields to return of its document. No field is null."""
        document = self.listed[ranked.index]
        entry: Json = {"index": ranked.index, "relevance_score": score_of(ranked, raw=raw)}
        if isinstance(document, Mapping) and not isinstance(self.documents, Content):
            given = [name for name in PASSED_THROUGH if name in document]
            entry |= {name: self.raw_body.value("documents", ranked.index, name, document[name]) for name in given}
        if ranked.placed_by:
            entry["placed_by"] = ranked.placed_by
        if not ranked.scored:
            entry["scored"] = False
        if self.return_documents:
            entry["document"] = self._returned(ranked.index)
        passages = result.scores.passages
        if passages is not None and passages.counts[ranked.index]:
            entry["passage"] = {
                "start": int(passages.starts[ranked.index]),
                "end": int(passages.ends[ranked.index]),
                "count": int(passages.counts[ranked.index]),
            }
        kept = None if result.scores.kept is None else result.scores.kept[ranked.index]
        if kept is not None:
            text = self.texts[ranked.index]
            entry["pruned"] = {"text": " ".join(text[start:end] for start, end in kept), "spans": kept}
        return entry

    def _returned(self, index: int) -> Any:  # noqa: ANN401 - whatever JSON holds
        """A document as the client sent it."""
        document = self.listed[index]
        if isinstance(document, str):
            return {"text": document}
        return document if isinstance(self.documents, Content) else self.raw_body.entry("documents", index)


def meta_of(result: RerankResult, options: ScoreOptions, *, version: str) -> Json:
    meta: Json = {
        "api_version": {"version": version},
        "billed_units": {"search_units": search_units(result)},
        "tokens": {"input_tokens": result.tokens},
    }
    if result.confidence is not None:
        meta |= {"confidence": result.confidence.value, "abstained": result.confidence.abstained}
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
    skipped = result.scores.skipped
    if skipped:
        warnings.append(f"{_documents_were(skipped)} not scored, because others promised more, and are in your order")
    if result.unscored_documents > skipped:
        why = "" if result.scores.ungraded else " before the deadline"
        others = result.unscored_documents - skipped
        warnings.append(f"{_documents_were(others)} not scored{why}, and are in your order")
    if result.scores.ungraded:
        count = result.scores.ungraded
        warnings.append(f"{count} answer{'' if count == 1 else 's'} of the model had no grade, and did not count")
    if result.scores.settled is not None:
        warnings.append(
            f"the deadline came before the order was settled: the first {result.scores.settled} places are final, the "
            "others are the best order that was known"
        )
    if result.scores.unordered:
        count, compared = result.scores.unordered, result.scores.comparisons
        what = f"comparison{'' if count == 1 else 's'}" if compared else f"window{'' if count == 1 else 's'}"
        warnings.append(f"the model named no document of {count} {what}, which kept the order it was given; ask again")
    return warnings


def _limit(result: RerankResult, options: ScoreOptions) -> str:
    """The name of the limit that cut documents, whether they are read whole or in passages."""
    if result.scores.passages is None:
        limit = "the model"
    elif options.passages.max_passages is None:
        limit = "the model's max_passages"
    else:
        limit = "max_chunks_per_doc (or passages.max_per_doc)"
    asked = {
        "max_tokens_per_doc": options.max_tokens_per_doc,
        "truncate_prompt_tokens": options.max_tokens_per_pair,
    }
    return " or ".join([limit, *(name for name, tokens in asked.items() if tokens is not None)])


def _tokens(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def _documents_were(documents: int) -> str:
    return "1 document was" if documents == 1 else f"{documents} documents were"


class Passage(BaseModel):
    """The characters of the best passage in the text that the model read, and the number of passages."""

    start: int
    end: int
    count: int


class Pruned(BaseModel):
    """What is left of a document, and the characters `[start, end)` of the text that the model read, in Unicode code
    points, that it was joined of.
    """

    text: str
    spans: list[Annotated[list[int], Field(min_length=2, max_length=2)]]


class Result(BaseModel):
    index: int
    relevance_score: float
    scored: bool | None = None
    placed_by: str | None = None
    id: Any | None = None
    metadata: Any | None = None
    document: dict[str, Any] | None = None
    passage: Passage | None = None
    pruned: Pruned | None = None
