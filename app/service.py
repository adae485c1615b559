"""The one use case: which model, within limits, scored, ranked."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.domain import RankedDocument, RerankRequest, RerankResult, ScoreOptions, Scores, WindowWishes
from app.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, RequestTooLarge
from app.model import LoadedModel, ServedModel
from app.observer import Observer
from app.ranking import rank

# A caller's text in a message: enough to recognise it, not enough to fill an answer with.
_NAME_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_documents: int
    max_query_chars: int
    request_timeout_s: float


class RerankService:
    def __init__(self, models: Sequence[ServedModel], *, default: str, limits: Limits, observer: Observer) -> None:
        self.models = models
        self._by_name: Mapping[str, ServedModel] = {
            name: model for model in models for name in (model.name, *model.aliases)
        }
        self._default = self._by_name[default]
        self.limits = limits
        self._observer = observer

    def model_named(self, name: str | None) -> ServedModel:
        """The model of that name or alias, the default for None.

        Raises:
            ModelNotFound: no model is called that; the message lists those that are.
        """
        if name is None:
            return self._default
        if name not in self._by_name:
            known = ", ".join(model.name for model in self.models)
            raise ModelNotFound(f"unknown model {name[:_NAME_SHOWN]!r}; known: {known}")
        return self._by_name[name]

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """Order a request's documents by relevance to its query.

        Raises:
            RerankError: see `app.errors`.
        """
        model = self.model_named(request.model)
        self._check(request)
        loaded = model.loaded
        try:
            async with asyncio.timeout(self.limits.request_timeout_s):
                blank, scores = await _score(loaded, request)
        except TimeoutError:
            limit = self.limits.request_timeout_s
            raise DeadlineExceeded(f"not answered within {limit:g} s; send fewer documents") from None
        dropped = int(scores.dropped.sum())
        self._observer.request_scored(model=model.name, timings=scores.timings, dropped_tokens=dropped)
        return RerankResult(
            model=model.name,
            results=_named(
                rank(scores.values, blank=blank, activation=loaded.activation, top_n=request.top_n), scores.placed_by
            ),
            tokens=int(scores.tokens.sum()),
            dropped_tokens=dropped,
            truncated_documents=int(np.count_nonzero(scores.dropped)),
            cached=scores.cached,
            timings=scores.timings,
        )

    def _check(self, request: RerankRequest) -> None:
        if not request.query.strip():
            raise InvalidRequest("the query is empty; send the text that documents are to be compared with")
        if len(request.query) > self.limits.max_query_chars:
            raise RequestTooLarge(
                f"at most {self.limits.max_query_chars} characters in a query; got {len(request.query)}"
            )
        if not request.documents:
            raise InvalidRequest("no documents; send at least one")
        if len(request.documents) > self.limits.max_documents:
            raise RequestTooLarge(
                f"at most {self.limits.max_documents} documents per request; got {len(request.documents)}"
            )


def _named(ranked: Sequence[RankedDocument], placed_by: Sequence[str | None] | None) -> Sequence[RankedDocument]:
    if placed_by is None:
        return ranked
    return [replace(document, placed_by=placed_by[document.index]) for document in ranked]


async def _score(loaded: LoadedModel, request: RerankRequest) -> tuple[np.ndarray, Scores]:
    """Score the documents that have text; the first array says which have none."""
    blank = np.fromiter((not text.strip() for text in request.documents), dtype=np.bool_)
    options = ScoreOptions(
        max_tokens_per_doc=request.max_tokens_per_doc,
        instruction=request.instruction,
        top_n=request.top_n,
        windows=_wishes(request.windows, blank),
    )
    if not blank.any():
        return blank, await loaded.stage.score(request.query, request.documents, options)
    written = [text for text in request.documents if text.strip()]
    if not written:
        return blank, _spread(_NOTHING, blank)
    return blank, _spread(await loaded.stage.score(request.query, written, options), blank)


def _wishes(windows: WindowWishes | None, blank: np.ndarray) -> WindowWishes | None:
    """A caller's order is of all documents; the stages see only those that have text."""
    if windows is None or windows.initial_order is None or not blank.any():
        return windows
    position = np.cumsum(~blank) - 1
    order = [int(position[index]) for index in windows.initial_order if 0 <= index < len(blank) and not blank[index]]
    return replace(windows, initial_order=order)


_NOTHING = Scores(
    values=np.empty(0, dtype=np.float32),
    tokens=np.empty(0, dtype=np.int64),
    dropped=np.empty(0, dtype=np.int64),
)


def _spread(scores: Scores, blank: np.ndarray) -> Scores:
    """Put scores back to their documents' positions; blank documents get zeros, which ranking ignores."""
    values = np.zeros(len(blank), dtype=np.float32)
    tokens = np.zeros(len(blank), dtype=np.int64)
    dropped = np.zeros(len(blank), dtype=np.int64)
    values[~blank], tokens[~blank], dropped[~blank] = scores.values, scores.tokens, scores.dropped
    placed_by: list[str | None] | None = None
    if scores.placed_by is not None:
        names = iter(scores.placed_by)
        placed_by = [None if empty else next(names) for empty in blank]
    return replace(scores, values=values, tokens=tokens, dropped=dropped, placed_by=placed_by)
