"""Ranks a list: candidates go through the model in windows, by a schedule; windows of many requests share batches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np

from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import FloatArray, ScoreOptions, Scores, Settled, Terms, WindowPlan, WindowWishes
from rerankd.errors import ConfigError, InvalidRequest, ScoringFailed
from rerankd.pipeline.choices import METHODS
from rerankd.pipeline.window_prompts import WindowPrompts
from rerankd.pipeline.windows import SCHEDULES, Schedule, Window, full
from rerankd.scorers.base import AnyListScorer, ListScorer

T = TypeVar("T")
R = TypeVar("R")


class WindowedStage(Generic[T, R]):
    """Its scores say the order and nothing else: n for the best of n documents down to 1, divided by n."""

    def __init__(self, scorer: ListScorer[T, R], batcher: Intake[T, R], tokenizing: SharedWorker) -> None:
        check_windows(scorer)
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Order the documents.

        Raises:
            InvalidRequest: a wish is out of the operator's bounds, or a prompt does not fit into the model.
            ScoringFailed: the model's score of a candidate is not a finite number.
            Overloaded, DeadlineExceeded, Unavailable: see `Intake.admit` and `Ticket.run`.
            RateLimited: the caller's quota does not last for another round.
        """
        wishes = options.windows or WindowWishes()
        plan = _known_schedule(wishes.within(self._scorer.plan))
        order = wishes.order_of(len(documents))
        prompts = WindowPrompts(self._scorer, self._batcher, self._tokenizing, query, documents, options)
        ranking = _Ranking(self._scorer, self._batcher, prompts)
        schedule = _schedule(plan, order[: plan.depth], top_n=options.top_n, settled=options.settled)
        # Half a schedule is no order, so a deadline is an error even where a partial answer was asked for.
        ranked = await ranking.run(schedule, options.terms.undivided())
        return ranking.scores([*ranked, *order[plan.depth :]])


class _Ranking(Generic[T, R]):
    """One request on its way through its schedule."""

    def __init__(self, scorer: ListScorer[T, R], batcher: Intake[T, R], prompts: WindowPrompts[T, R]) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._prompts = prompts
        self._unordered = 0

    async def run(self, schedule: Schedule, terms: Terms) -> list[int]:
        """Rank all rounds of windows with one ticket: only the first round is asked whether there is room for it, since
        what was begun is finished.
        """
        windows = next(schedule)
        async with self._batcher.admit(self._prompts.estimate(windows), terms) as ticket:
            while True:
                outcome = await self._prompts.run(windows, ticket)
                try:
                    windows = schedule.send(list(map(self._ordered, windows, outcome.results)))
                except StopIteration as end:
                    ranked: list[int] = end.value
                    return ranked

    def _ordered(self, window: Window, result: R) -> list[int]:
        scores = self._scorer.interpret_window(result, candidates=len(window))
        if not np.isfinite(scores).all():
            raise ScoringFailed("the model's score of a candidate is not a finite number")
        if len(window) > 1 and bool((scores == scores[0]).all()):
            self._unordered += 1
        return [window[place] for place in np.argsort(-scores, kind="stable")]

    def scores(self, ranked: Sequence[int]) -> Scores:
        return replace(self._prompts.scores(values_of_order(ranked)), unordered=self._unordered)


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


def _schedule(plan: WindowPlan, candidates: Sequence[int], *, top_n: int | None, settled: Settled | None) -> Schedule:
    """One pass over the overlap settles `window - stride` candidates; no schedule is asked for more."""
    settle = min(top_n or plan.window, plan.window - plan.stride)
    # One candidate needs no model, but a client or a canary that asks about it must learn whether the model answers.
    schedule = full if len(candidates) == 1 else SCHEDULES[plan.schedule]
    return schedule(candidates, window=plan.window, stride=plan.stride, settle=settle, settled=settled)
