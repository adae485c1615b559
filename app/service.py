"""The one use case: which model, within limits, scored, ranked."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.domain import RerankRequest, RerankResult, ScoreOptions, Scores
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
            results=rank(scores.values, blank=blank, activation=loaded.activation, top_n=request.top_n),
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


async def _score(loaded: LoadedModel, request: RerankRequest) -> tuple[np.ndarray, Scores]:
    """Score the documents that have text; the first array says which have none."""
    blank = np.fromiter((not text.strip() for text in request.documents), dtype=np.bool_)
    options = ScoreOptions(max_tokens_per_doc=request.max_tokens_per_doc)
    if not blank.any():
        return blank, await loaded.stage.score(request.query, request.documents, options)
    written = [text for text in request.documents if text.strip()]
    if not written:
        return blank, _spread(_NOTHING, blank)
    return blank, _spread(await loaded.stage.score(request.query, written, options), blank)


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
    return Scores(values=values, tokens=tokens, dropped=dropped, cached=scores.cached, timings=scores.timings)
