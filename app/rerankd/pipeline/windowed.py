"""Ranks a list: candidates go through the model in windows, by a schedule; windows of many requests share batches."""

from collections.abc import Sequence
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.batcher import Batcher
from rerankd.batching.ticket import Ticket
from rerankd.batching.work import WorkItem
from rerankd.concurrency.gathering import gather_or_cancel
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, ScoreOptions, Scores, Timings, WindowPlan, WindowWishes
from rerankd.errors import ConfigError, InvalidRequest, ScoringFailed
from rerankd.pipeline.choices import METHODS
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.items import items_of, tokenized
from rerankd.pipeline.windows import SCHEDULES, Schedule, Window, full
from rerankd.scorers.base import AnyListScorer, EncodedWindow, ListScorer

T = TypeVar("T")
R = TypeVar("R")


class WindowedStage(Generic[T, R]):
    """Its scores say the order and nothing else: n for the best of n documents down to 1, divided by n."""

    def __init__(self, scorer: ListScorer[T, R], batcher: Batcher[T, R], tokenizing: SharedWorker) -> None:
        check_windows(scorer)
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Order the documents.

        Raises:
            InvalidRequest: a wish is out of the operator's bounds, or a prompt does not fit into the model.
            ScoringFailed: the model's score of a candidate is not a finite number.
            Overloaded, DeadlineExceeded, Unavailable: see `Batcher.admit` and `Ticket.run`.
            RateLimited: the caller's quota does not last for another round.
        """
        wishes = options.windows or WindowWishes()
        plan = _known_schedule(wishes.within(self._scorer.plan))
        order = wishes.order_of(len(documents))
        ranking = _Ranking(self._scorer, self._batcher, self._tokenizing, query, documents, options)
        ranked = await ranking.run(_schedule(plan, order[: plan.depth], top_n=options.top_n))
        return ranking.scores([*ranked, *order[plan.depth :]])


class _Ranking(Generic[T, R]):
    """One request on its way through its schedule, and what that has cost so far."""

    def __init__(
        self,
        scorer: ListScorer[T, R],
        batcher: Batcher[T, R],
        tokenizing: SharedWorker,
        query: str,
        documents: Sequence[str],
        options: ScoreOptions,
    ) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._query = query
        self._documents = documents
        self._options = options
        # Half a schedule is no order, so a deadline is an error even where a partial answer was asked for.
        self._terms = options.terms.undivided()
        self._tokens = np.zeros(len(documents), dtype=np.int64)
        self._dropped = np.zeros(len(documents), dtype=np.int64)
        self._timings = Timings()
        self._unordered = 0

    async def run(self, schedule: Schedule) -> list[int]:
        """Rank all rounds of windows with one ticket: only the first round is asked whether there is room for it, since
        what was begun is finished.
        """
        windows = next(schedule)
        async with self._batcher.admit(self._estimate(windows), self._terms) as ticket:
            while True:
                orders = await self._rank(windows, ticket)
                try:
                    windows = schedule.send(orders)
                except StopIteration as end:
                    ranked: list[int] = end.value
                    return ranked

    async def _rank(self, windows: Sequence[Window], ticket: Ticket[T, R]) -> list[list[int]]:
        """The candidates of each window in order of relevance: one trip through the batcher for all of them."""
        started = perf_counter()
        encoded = await gather_or_cancel(map(self._encode, windows))
        tokenized = perf_counter()
        items = items_of(self._scorer.task, [one.encoding for one in encoded], scope=self._options.scope)
        ticket.correct(self._tokenized(windows, encoded, items))
        costs = [item.cost for item in items]
        outcome = await ticket.run(items)
        self._timings += Timings(
            tokenize_s=tokenized - started, queue_s=outcome.queue_s, inference_s=outcome.inference_s
        )
        for window, one, cost in zip(windows, encoded, costs, strict=True):
            self._charge(window, one, cost)
        return [self._ordered(window, row) for window, row in zip(windows, outcome.results, strict=True)]

    def _estimate(self, windows: Sequence[Window]) -> Estimate:
        return Estimate(
            characters=sum(map(self._characters, windows)), items=len(windows), longest=self._scorer.max_length
        )

    def _characters(self, window: Window) -> int:
        return len(self._query) + sum(len(self._documents[candidate]) for candidate in window)

    def _tokenized(
        self, windows: Sequence[Window], encoded: Sequence[EncodedWindow[T]], items: Sequence[WorkItem[T]]
    ) -> Tokenized:
        return tokenized(
            items,
            self._batcher.lengths_of(items),
            characters=list(map(self._characters, windows)),
            whole=[index for index, one in enumerate(encoded) if not one.dropped.any()],
        )

    async def _encode(self, window: Window) -> EncodedWindow[T]:
        candidates = [self._documents[candidate] for candidate in window]
        return await self._tokenizing.run(
            share_of(self._options.terms, candidates),
            self._scorer.encode_window,
            self._query,
            candidates,
            max_document_tokens=self._options.max_tokens_per_doc,
            instruction=self._options.instruction,
        )

    def _ordered(self, window: Window, result: R) -> list[int]:
        scores = self._scorer.interpret_window(result, candidates=len(window))
        if not np.isfinite(scores).all():
            raise ScoringFailed("the model's score of a candidate is not a finite number")
        if len(window) > 1 and bool((scores == scores[0]).all()):
            self._unordered += 1
        return [window[place] for place in np.argsort(-scores, kind="stable")]

    def _charge(self, window: Window, encoded: EncodedWindow[T], tokens: int) -> None:
        """A prompt's tokens are its candidates' in equal parts, so that a request's sum is what the model read."""
        share, rest = divmod(tokens, len(window))
        self._tokens[window] += share
        self._tokens[window[:rest]] += 1
        self._dropped[window] = np.maximum(self._dropped[window], encoded.dropped)

    def scores(self, ranked: Sequence[int]) -> Scores:
        return Scores(
            values=values_of_order(ranked),
            tokens=self._tokens,
            dropped=self._dropped,
            timings=self._timings,
            unordered=self._unordered,
        )


def values_of_order(ranked: Sequence[int]) -> FloatArray:
    """Scores that say this order of document indices, in (0, 1], in request order."""
    values = np.empty(len(ranked), dtype=np.float32)
    values[np.asarray(ranked, dtype=np.int64)] = np.arange(len(ranked), 0, -1, dtype=np.float32) / len(ranked)
    return values


def check_windows(scorer: AnyListScorer) -> None:
    """Check that a scorer's plan is one of windows, and that it orders them.

    Raises:
        ConfigError: it does not.
    """
    schedule, names_best = scorer.plan.schedule, scorer.names_best
    if schedule not in SCHEDULES:
        known = ", ".join([*SCHEDULES, *METHODS])
        raise ConfigError(f"unknown schedule {schedule[:40]!r}; known: {known}")
    if names_best:
        raise ConfigError(
            f"schedule {schedule!r} needs the order of a whole window, and by its template this model names only the "
            f"best of one; set schedule to one of: {', '.join(METHODS)}"
        )


def _known_schedule(plan: WindowPlan) -> WindowPlan:
    if plan.schedule not in SCHEDULES:
        raise InvalidRequest(f"unknown schedule {plan.schedule[:40]!r}; known: {', '.join(SCHEDULES)}")
    return plan


def _schedule(plan: WindowPlan, candidates: Sequence[int], *, top_n: int | None) -> Schedule:
    """One pass over the overlap settles `window - stride` candidates; no schedule is asked for more."""
    settle = min(top_n or plan.window, plan.window - plan.stride)
    # One candidate needs no model, but a client or a canary that asks about it must learn whether the model answers.
    schedule = full if len(candidates) == 1 else SCHEDULES[plan.schedule]
    return schedule(candidates, window=plan.window, stride=plan.stride, settle=settle)
