"""What the dialects of Cohere and Jina share: the same request, and most of the answer."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from pydantic import BaseModel, Field

from app.api.dialects.base import Call, Json
from app.api.dialects.fields import Documents, ModelName, Sent, TopN, texts_of
from app.domain import RerankRequest, RerankResult, WindowWishes

_DOCUMENTS_PER_SEARCH_UNIT = 100


class Windows(BaseModel):
    """What a caller may ask of a listwise model; the operator's plan sets the bounds."""

    window: int | None = None
    stride: int | None = None
    schedule: str | None = None
    depth: int | None = None
    initial_order: list[int] | None = Field(default=None, description="Indices of all documents, best first.")

    def to_wishes(self) -> WindowWishes:
        return WindowWishes(**self.model_dump())


class SupersetCall(Call):
    """The request fields of both; a dialect adds how it answers."""

    model: ModelName = None
    query: str
    documents: Documents
    top_n: TopN = None
    max_tokens_per_doc: int | None = Field(
        default=None, ge=1, description="Read at most this many tokens of each document."
    )
    rank_fields: list[str] | None = Field(
        default=None, description='The fields of documents sent as objects to read; default: "text".'
    )
    return_documents: bool | None = Field(default=None, description="Send the documents back with the results.")
    instruction: str | None = Field(
        default=None, max_length=8192, description="What to look for, for models whose prompt has a place for it."
    )
    windows: Windows | None = Field(default=None, description="How a listwise model is to go through the documents.")

    def to_request(self) -> RerankRequest:
        return RerankRequest(
            query=self.query,
            documents=texts_of(self.documents, rank_fields=self.rank_fields),
            model=self.model,
            top_n=self.top_n,
            max_tokens_per_doc=self.max_tokens_per_doc,
            instruction=self.instruction or None,
            windows=self.windows.to_wishes() if self.windows else None,
        )


def results_of(result: RerankResult, documents: Sequence[Any], *, with_documents: bool) -> list[Json]:
    return [
        {
            "index": ranked.index,
            "relevance_score": ranked.relevance_score,
            **({"placed_by": ranked.placed_by} if ranked.placed_by else {}),
            **_id_of(documents[ranked.index]),
            **({"document": _echo(documents[ranked.index])} if with_documents else {}),
        }
        for ranked in result.results
    ]


def meta_of(result: RerankResult, *, documents: int, version: str) -> Json:
    meta: Json = {
        "api_version": {"version": version},
        "billed_units": {"search_units": ceil(documents / _DOCUMENTS_PER_SEARCH_UNIT)},
        "tokens": {"input_tokens": result.tokens},
    }
    if result.truncated_documents:
        cut = result.truncated_documents
        which = "1 document was" if cut == 1 else f"{cut} documents were"
        what = "longer than the model or max_tokens_per_doc allows"
        meta["warnings"] = [f"{which} {what}: {result.dropped_tokens} tokens not read"]
    return meta


class Result(BaseModel):
    index: int
    relevance_score: float
    placed_by: str | None = None
    id: Any | None = None
    document: dict[str, Any] | None = None


def _echo(document: Sent) -> dict[str, Any]:
    """A document as answers give it back: objects as they came, a string as an object with a text."""
    return {"text": document} if isinstance(document, str) else dict(document)


def _id_of(document: Sent) -> dict[str, Any]:
    """The id of a document that was sent with one, to merge into its result."""
    return {"id": document["id"]} if isinstance(document, Mapping) and "id" in document else {}
