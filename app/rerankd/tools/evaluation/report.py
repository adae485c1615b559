"""Makes a report of orders: measures with intervals, differences from the baseline, speed, depth curve. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from rerankd.errors import ConfigError
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.fusing import Choice
from rerankd.tools.evaluation.measures import MAIN_MEASURE, Values, area_under_roc, measure
from rerankd.tools.evaluation.scoring import Rankings
from rerankd.tools.evaluation.significance import Difference, Interval, interval_of_mean, paired_difference
from rerankd.tools.evaluation.targets import Ranked


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of one question at a time. `pairs` is the mean number of candidates."""

    p50_ms: float
    p95_ms: float
    queries_per_s: float
    pairs_per_s: float
    pairs: float


@dataclass(frozen=True, slots=True)
class AtDepth:
    """The mean of every measure when only the first `depth` candidates are reranked."""

    depth: int
    measures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One target on one set, or its mean over the sets. `against_baseline` is empty for the baseline itself; `refused`
    queries count as zero.
    """

    target: str
    measures: Mapping[str, Interval]
    against_baseline: Mapping[str, Difference]
    auc: float | None
    speed: Speed | None
    curve: Sequence[AtDepth]
    refused: int
    per_query: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """One data set. `queries` count in the measures, `without_relevant` and `unjudged` do not; those
    `without_candidates` count as zero. Judged pairs (`candidates` None) have an AUC and no measures.
    """

    name: str
    candidates: str | None
    judgements: str
    level: int
    queries: int
    without_relevant: int
    without_candidates: int
    unjudged: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`means` has one row a target over all sets with measures; empty when that is a single one. Measures are of the
    best `depth` candidates, times of the `deepest` that the depth curve wants. `fusions` are recommended.
    """

    baseline: str
    depth: int
    deepest: int
    sets: Sequence[SetReport]
    means: Sequence[Row]
    details: Mapping[str, Any]
    fusions: Sequence[Choice] = ()

    @property
    def averaged(self) -> Sequence[str]:
        """The sets that have measures."""
        return [data_set.name for data_set in self.sets if data_set.queries]

    @property
    def summary(self) -> Sequence[Row]:
        """The rows to compare targets by."""
        return self.means or next((data_set.rows for data_set in self.sets if data_set.queries), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """`main` is the depth of the measures, `curve` those of the depth curve."""

    main: int
    curve: Sequence[int] = ()

    @property
    def deepest(self) -> int:
        return max((self.main, *self.curve))


def build_report(
    data_sets: Sequence[DataSet],
    rankings: Rankings,
    *,
    baseline: str,
    depths: Depths,
    details: Mapping[str, Any],
    fusions: Sequence[Choice] = (),
) -> Report:
    """Measure every target on every set.

    Raises:
        ConfigError: no target is called like the baseline.
    """
    check_baseline(baseline, list(rankings))
    orders = {
        (target, data_set.name): _Orders(data_set, of_target.get(data_set.name, {}), depths)
        for target, of_target in rankings.items()
        for data_set in data_sets
    }
    ranked = [data_set.name for data_set in data_sets if data_set.ranked]
    return Report(
        baseline=baseline,
        depth=depths.main,
        deepest=depths.deepest,
        sets=[
            _set_report(data_set, [_row(target, [data_set.name], orders, baseline) for target in rankings])
            for data_set in data_sets
        ],
        means=[_row(target, ranked, orders, baseline) for target in rankings] if len(ranked) > 1 else [],
        details=details,
        fusions=fusions,
    )


def check_baseline(baseline: str, targets: Sequence[str]) -> None:
    """Raises `ConfigError` if no target has this name."""
    if baseline not in targets:
        raise ConfigError(f"the baseline {baseline!r} is not evaluated; known: {', '.join(targets)}")


class _Orders:
    """One target's answers on one set, measured at every depth. A depth of fewer candidates than were scored leaves
    the others out.
    """

    def __init__(self, data_set: DataSet, answers: Mapping[str, Ranked], depths: Depths) -> None:
        self.questions = data_set.ranked
        self._data_set = data_set
        self._answers = answers
        self.values = self._measured(depths.main)
        self.curve = {depth: self._measured(depth) for depth in depths.curve}
        self.refused = sum(not answer.order for answer in answers.values())
        self.timed = [(answer.seconds, len(answer.order)) for answer in answers.values() if answer.seconds > 0]

    def _measured(self, depth: int) -> dict[str, Values]:
        orders = {
            question.query_id: [
                question.document_ids[index] for index in self._answers[question.query_id].order_at(depth)
            ]
            for question in self.questions
            if self._answered(question)
        }
        return measure(self.questions, orders, level=self._data_set.level)

    def _answered(self, question: Question) -> bool:
        return question.query_id in self._answers and len(self._answers[question.query_id].order) > 0

    def auc(self) -> float | None:
        """Over all judged pairs that were scored."""
        pairs = list(chain.from_iterable(self._judged(question) for question in self._data_set.questions))
        grades, scores = np.array([grade for grade, _ in pairs]), np.array([score for _, score in pairs])
        relevant = grades >= self._data_set.level
        return area_under_roc(scores[relevant], scores[~relevant])

    def _judged(self, question: Question) -> list[tuple[int, float]]:
        answer = self._answers.get(question.query_id)
        if answer is None:
            return []
        documents = (question.document_ids[index] for index in answer.order)
        scored = zip(documents, answer.relevance_scores, strict=False)  # the first stage has no scores
        return [(question.grades[document], score) for document, score in scored if document in question.grades]


_ByTargetAndSet = Mapping[tuple[str, str], _Orders]


def _row(target: str, sets: Sequence[str], orders: _ByTargetAndSet, baseline: str) -> Row:
    """A target's row over some sets: a set of its own, or all of them."""
    ours, theirs = ([orders[name, data_set] for data_set in sets] for name in (target, baseline))
    measured = [of_set for of_set in ours if of_set.questions]
    names = list(ours[0].values) if measured else []
    return Row(
        target=target,
        measures={name: interval_of_mean([of_set.values[name] for of_set in measured]) for name in names},
        against_baseline={
            name: paired_difference([a.values[name] - b.values[name] for a, b in zip(ours, theirs, strict=True)])
            for name in names
            if target != baseline
        },
        auc=ours[0].auc() if len(sets) == 1 else None,
        speed=_speed(ours),
        curve=_curve(measured),
        refused=sum(of_set.refused for of_set in ours),
        per_query=_per_query(ours[0]) if len(sets) == 1 else {},
    )


def _curve(measured: Sequence[_Orders]) -> list[AtDepth]:
    depths = measured[0].curve if measured else {}
    return [
        AtDepth(
            depth,
            {name: float(np.mean([of_set.curve[depth][name].mean() for of_set in measured])) for name in values},
        )
        for depth, values in depths.items()
    ]


def _speed(orders: Sequence[_Orders]) -> Speed | None:
    timed = [answer for of_set in orders for answer in of_set.timed]
    if not timed:
        return None
    seconds, pairs = np.array(timed).T
    p50, p95 = np.quantile(seconds, (0.5, 0.95)) * 1000
    total = float(seconds.sum())
    return Speed(float(p50), float(p95), len(timed) / total, float(pairs.sum()) / total, float(pairs.mean()))


def _per_query(orders: _Orders) -> dict[str, dict[str, float]]:
    return {
        name: {question.query_id: float(value) for question, value in zip(orders.questions, values, strict=True)}
        for name, values in orders.values.items()
    }


def _set_report(data_set: DataSet, rows: Sequence[Row]) -> SetReport:
    return SetReport(
        name=data_set.name,
        candidates=data_set.candidates,
        judgements=data_set.judgements,
        level=data_set.level,
        queries=len(data_set.ranked),
        without_relevant=sum(not question.answerable for question in data_set.questions),
        without_candidates=sum(not question.document_ids for question in data_set.ranked),
        unjudged=data_set.unjudged,
        rows=rows,
    )


def main_value(row: Row) -> Interval | None:
    """The measure by which targets are compared; None for a set of judged pairs."""
    return row.measures.get(MAIN_MEASURE)
