"""Chooses how a model's scores are fused with the first stage's, on judged questions, and says what that is worth.

What is measured is held out: the questions are split in two by a hash of their ids, and each half is ordered by the
plan that is best on the other half. The plan that is recommended is the best one on all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rerankd.domain import FusionMode, FusionPlan
from rerankd.domain.fusion import rank_scores
from rerankd.errors import ConfigError
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.measures import Values, measure_main
from rerankd.tools.evaluation.scoring import Rankings
from rerankd.tools.evaluation.targets import FIRST_STAGE, Ranked

_WEIGHTS: Final = tuple(round(step / 20, 2) for step in range(21))
PLANS: Final = tuple(
    FusionPlan(mode=mode, weight=weight)
    for mode in (FusionMode.Z_SCORE, FusionMode.MIN_MAX, FusionMode.RRF)
    for weight in _WEIGHTS
)
_SUFFIX: Final = " fused"


@dataclass(frozen=True, slots=True)
class FusedAnswer:
    """A model's answer, fused with the first stage's scores of the same candidates."""

    answer: Ranked
    first_scores: Sequence[float]
    plan: FusionPlan
    relevance_scores: Sequence[float] = ()
    values: Sequence[float] = ()
    seconds: float = 0.0

    @property
    def order(self) -> Sequence[int]:
        return self.order_at(len(self.answer.order))

    def order_at(self, depth: int) -> Sequence[int]:
        """Of the first `depth` candidates, which are also all that scores are normalized over."""
        by_index = dict(zip(self.answer.order, self.answer.values, strict=True))
        depth = min(depth, len(by_index))
        fused = self.plan.fuse(self.first_scores[:depth], [by_index[index] for index in range(depth)])
        order: list[int] = np.argsort(-fused, kind="stable").tolist()
        return order


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The plan that is recommended for a target, and the main measure: of the model alone, and fused, held out."""

    target: str
    plan: FusionPlan
    alone: float
    held_out: float

    @property
    def line(self) -> str:
        """For the target's table in a registry."""
        return f'fusion = {{ mode = "{self.plan.mode}", weight = {self.plan.weight:g} }}'


def with_fusion(rankings: Rankings, data_sets: Sequence[DataSet], *, depth: int) -> tuple[Rankings, list[Choice]]:
    """The rankings with one more target for each: the same, fused. Plans are chosen at `depth` candidates.

    Raises:
        ConfigError: no set has questions whose order can be measured.
    """
    ranked = [data_set for data_set in data_sets if data_set.ranked]
    if not ranked:
        raise ConfigError("--fuse needs a set with candidates: judged pairs have no first stage")
    extended, choices = dict(rankings), []
    for target in rankings:
        if target == FIRST_STAGE:
            continue
        extended[target + _SUFFIX], choice = _fuse(target, rankings[target], ranked, depth)
        choices.append(choice)
    return extended, choices


def _fuse(
    target: str, answers: Mapping[str, Mapping[str, Ranked]], data_sets: Sequence[DataSet], depth: int
) -> tuple[Mapping[str, Mapping[str, Ranked]], Choice]:
    values = {
        data_set.name: np.stack([_measured(data_set, answers[data_set.name], plan, depth) for plan in PLANS])
        for data_set in data_sets
    }
    halves = {data_set.name: np.array([question.half for question in data_set.ranked]) for data_set in data_sets}
    best = [_best(values, {name: half != held for name, half in halves.items()}) for held in (0, 1)]
    fused: dict[str, dict[str, Ranked]] = {
        data_set.name: {
            question.query_id: _fused(answers[data_set.name][question.query_id], question, PLANS[best[question.half]])
            for question in data_set.questions
            if question.query_id in answers[data_set.name]
        }
        for data_set in data_sets
    }
    held_out = [values[name][np.array(best)[half], np.arange(len(half))].mean() for name, half in halves.items()]
    alone = [values[name][PLANS.index(FusionPlan(mode=FusionMode.Z_SCORE, weight=0))].mean() for name in values]
    everything = {name: np.ones(len(half), dtype=np.bool_) for name, half in halves.items()}
    return fused, Choice(
        target=target,
        plan=PLANS[_best(values, everything)],
        alone=float(np.mean(alone)),
        held_out=float(np.mean(held_out)),
    )


def _best(values: Mapping[str, Values], chosen: Mapping[str, np.ndarray]) -> int:
    """The place of the plan with the best mean over the sets, by their chosen questions; of equals the first."""
    means = [of_set[:, chosen[name]].mean(axis=1) for name, of_set in values.items() if chosen[name].any()]
    return int(np.argmax(np.round(np.mean(means, axis=0), 9))) if means else 0


def _measured(data_set: DataSet, answers: Mapping[str, Ranked], plan: FusionPlan, depth: int) -> Values:
    orders = {
        question.query_id: [
            question.document_ids[index] for index in _fused(answers[question.query_id], question, plan).order_at(depth)
        ]
        for question in data_set.ranked
        if question.query_id in answers
    }
    return measure_main(data_set.ranked, orders)


def _fused(answer: Ranked, question: Question, plan: FusionPlan) -> FusedAnswer:
    """A query that was refused stays so."""
    first = question.first_scores or rank_scores(range(len(question.document_ids))).tolist()
    return FusedAnswer(answer, first, plan)
