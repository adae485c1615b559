"""The one use case: which model, within limits, scored, ranked."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from rerankd.concurrency.gathering import gather_or_cancel
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.turns import Share
from rerankd.domain import (
    Confidence,
    ConfidenceMethod,
    ConfidencePlan,
    ImageLimits,
    RankedDocument,
    RerankRequest,
    RerankResult,
    Scores,
    Truncation,
)
from rerankd.domain.requests import queries_of
from rerankd.errors import DeadlineExceeded, InvalidRequest, RequestTooLarge, TooLong
from rerankd.scorers.ranking import rank
from rerankd.serving.answering import Answered, answer
from rerankd.serving.catalog import Catalog
from rerankd.serving.model import LoadedModel, ServedModel, Status
from rerankd.telemetry.observer import Observer

# More than these are ranked in a thread.
_MANY_DOCUMENTS = 1000
# The requests of one call that are worked on at the same time. With more the event loop would serve this call only.
_CONCURRENT_REQUESTS = 128
_GRACE_S = 0.1
_PARTIAL_GRACE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_documents: int
    max_query_chars: int
    images: ImageLimits
    request_timeout_s: float
    loading_timeout_s: float
    cache_per_key: bool = False


class RerankService:
    def __init__(
        self,
        catalog: Catalog,
        *,
        limits: Limits,
        observer: Observer,
        background: SharedWorker,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._catalog = catalog
        self.limits = limits
        self.background = background
        self.clock = clock
        self._observer = observer

    @property
    def models(self) -> Sequence[ServedModel]:
        """The models that are served now."""
        return self._catalog.models

    def model_named(self, name: str | None) -> ServedModel:
        """See `Catalog.named`."""
        return self._catalog.named(name)

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """Order a request's documents by relevance to its query.

        Raises:
            RerankError: see `rerankd.errors`.
        """
        model = self.model_named(request.model)
        self._check(request)
        loaded = await self._loaded(model, request)
        with loaded.usage:
            return await self._rerank(model, loaded, request)

    async def rerank_all(self, requests: Sequence[RerankRequest]) -> Sequence[RerankResult]:
        """The result of each request, all from the versions of the models that serve now. The first failure stops all.

        Raises:
            RerankError: see `rerankd.errors`.
        """
        if len(requests) == 1:
            return [await self.rerank(requests[0])]
        models = {request.model: self.model_named(request.model) for request in requests}
        for request in requests:
            self._check(request)
        results: dict[int, RerankResult] = {}
        waiting = iter(enumerate(requests))
        with ExitStack() as using:
            loaded = {}
            for name, model in models.items():
                loaded[name] = await self._loaded(model, requests[0])
                using.enter_context(loaded[name].usage)

            async def work() -> None:
                for index, request in waiting:
                    name = request.model
                    results[index] = await self._rerank(models[name], loaded[name], request)

            await gather_or_cancel(work() for _ in requests[:_CONCURRENT_REQUESTS])
        return [results[index] for index in range(len(requests))]

    async def _loaded(self, model: ServedModel, request: RerankRequest) -> LoadedModel:
        """What answers a request. One that finds the model unloaded waits for it until its deadline."""
        unloaded = model.status is Status.UNLOADED
        patience_s = self.limits.request_timeout_s if unloaded else self.limits.loading_timeout_s
        return await model.loaded_within(min(patience_s, request.options.terms.deadline - self.clock()))

    async def _rerank(self, model: ServedModel, loaded: LoadedModel, request: RerankRequest) -> RerankResult:
        if request.options.confidence is not None and loaded.confidence is not None:
            loaded.confidence.resolve(request.options.confidence)
        terms = request.options.terms
        if terms.meter.limited:
            estimates = (loaded.estimate(query, request.documents, request.options) for query in queries_of(request))
            await terms.meter.reserve(sum(estimates))
        answered = await self._score_in_time(model, loaded, request)
        name, loaded, scores = answered.model.name, answered.loaded, answered.scores
        self._observer.request_scored(
            model=name,
            timings=scores.timings,
            dropped_tokens=int(scores.dropped.sum()),
            unordered_windows=scores.unordered,
            ungraded_answers=scores.ungraded,
            comparisons=scores.comparisons,
        )
        if scores.fused is not None and scores.fused.of_first_stage:
            self._observer.request_fused(model=name, mode=scores.fused.plan.mode)
        if request.options.truncation is Truncation.ERROR:
            _refuse_cut_documents(scores)
        if len(request.documents) > _MANY_DOCUMENTS:
            share = Share(caller=terms.caller, cost=len(request.documents), left=len(request.documents))
            results, confidence = await self.background.run(share, _ranked, loaded, request, scores)
        else:
            results, confidence = _ranked(loaded, request, scores)
        if confidence is not None and confidence.abstained:
            self._observer.request_abstained(model=name)
        return RerankResult(
            model=name,
            scorer=str(loaded.details.get("scorer", "")),
            results=results,
            scores=scores,
            fallback_for="" if name == model.name else model.name,
            confidence=confidence,
            ignored=[
                wish for wish in request.options.wishes if wish in loaded.ignores or wish in request.options.idle_wishes
            ],
        )

    async def _score_in_time(self, model: ServedModel, loaded: LoadedModel, request: RerankRequest) -> Answered:
        """Score within the request's deadline and the service's own limit, whichever is earlier.

        The batcher keeps the deadline, and knows what was missing; this is for the time that goes by elsewhere. A
        partial answer has a little longer, because it is made when the deadline comes.
        """
        now = self.clock()
        limit = now + self.limits.request_timeout_s
        terms = request.options.terms
        if not terms.background:
            terms = replace(terms, deadline=min(terms.deadline, limit))
        options = replace(
            request.options,
            top_n=request.top_n,
            terms=terms,
            scope=terms.caller if self.limits.cache_per_key else "",
        )
        grace_s = _PARTIAL_GRACE_S if terms.partial else _GRACE_S
        allowed_s = max(0.0, terms.deadline - now)
        with suppress(TimeoutError):
            async with asyncio.timeout(allowed_s + grace_s):
                return await answer(model, loaded, request.query, request.documents, options, clock=self.clock)
        # Not while the TimeoutError is handled: it would be a part of this error, and holds the task that ends with it.
        raise DeadlineExceeded(f"not answered within {allowed_s:g} s; send fewer documents")

    def _check(self, request: RerankRequest) -> None:
        queries = queries_of(request)
        longest = max(map(len, queries))
        if longest > self.limits.max_query_chars:
            raise RequestTooLarge(f"at most {self.limits.max_query_chars} characters in a query; got {longest}")
        instruction = request.options.instruction or ""
        if len(instruction) > self.limits.max_query_chars:
            raise RequestTooLarge(
                f"at most {self.limits.max_query_chars} characters in an instruction; got {len(instruction)}"
            )
        if not request.documents:
            raise InvalidRequest("no documents; send at least one")
        if len(request.documents) > self.limits.max_documents:
            raise RequestTooLarge(
                f"at most {self.limits.max_documents} documents per request; got {len(request.documents)}"
            )
        if len(queries) * len(request.documents) > self.limits.max_documents:
            raise RequestTooLarge(
                f"at most {self.limits.max_documents} documents per request, once for each query; got "
                f"{len(queries)} queries of {len(request.documents)} documents"
            )


def _ranked(
    loaded: LoadedModel, request: RerankRequest, scores: Scores
) -> tuple[Sequence[RankedDocument], Confidence | None]:
    return _best(loaded, request, scores), _confidence(loaded, request.options.confidence or ConfidencePlan(), scores)


def _confidence(loaded: LoadedModel, wishes: ConfidencePlan, scores: Scores) -> Confidence | None:
    """In the model's own order, by all documents that it has scored."""
    if loaded.confidence is None:
        return None
    plan = loaded.confidence.resolve(wishes)
    if plan.method is ConfidenceMethod.NONE:
        return None
    known = scores.values[scores.known]
    return loaded.confidence.estimate(plan, known, loaded.activation(known))


def _best(loaded: LoadedModel, request: RerankRequest, scores: Scores) -> Sequence[RankedDocument]:
    results = rank(scores, activation=loaded.activation, top_n=request.top_n)
    if request.min_score is None:
        return results
    return [ranked for ranked in results if _relevance(ranked) >= request.min_score]


def _relevance(ranked: RankedDocument) -> float:
    """As the model finds it: fused scores compare documents of one request only."""
    return ranked.relevance_score if ranked.own_relevance is None else ranked.own_relevance


def _refuse_cut_documents(scores: Scores) -> None:
    """Hold a caller to `truncation: error`. Nothing of such a request was scored unless the cache knew it."""
    cut = np.flatnonzero(scores.dropped)
    if len(cut):
        first = int(cut[0])
        others = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
        problem = f"{others} cannot be read whole: {int(scores.dropped[first])} tokens of it do not fit; shorten it"
        raise InvalidRequest(TooLong(problem=problem, index=first))
