"""Measures of an order through ir-measures, per query; and the area under the ROC curve, which measures scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from ir_measures import AP, RR, P, R, iter_calc, nDCG
from numpy.typing import NDArray

from rerankd.tools.evaluation.datasets import Question

Values = NDArray[np.float64]

# ir-measures has no types. A level is the lowest grade that counts as relevant; nDCG uses the grades themselves.
_MEASURES: Final[Mapping[str, Callable[[int], Any]]] = {
    "nDCG@10": lambda _level: nDCG @ 10,
    "RR@10": lambda level: RR(rel=level) @ 10,
    "P@1": lambda level: P(rel=level) @ 1,
    "R@10": lambda level: R(rel=level) @ 10,
    "R@100": lambda level: R(rel=level) @ 100,
}
# Of a whole ranking, for `rerankd calibrate`.
PREDICTED: Final[Mapping[str, Callable[[int], Any]]] = {
    "nDCG@10": lambda _level: nDCG @ 10,
    "AP": lambda level: AP(rel=level),
    "RR": lambda level: RR(rel=level),
}
MEASURES: Final = tuple(_MEASURES)
MAIN_MEASURE: Final = "nDCG@10"
_LOOKED_AT: Final = 10


def measure(questions: Sequence[Question], orders: Mapping[str, Sequence[str]], *, level: int) -> dict[str, Values]:
    """All measures of all questions, in their order. A question without an order counts as zero.

    `orders` holds document ids by query, best first.
    """
    wanted = [build(level) for build in _MEASURES.values()]
    return dict(zip(_MEASURES, _measure(questions, orders, wanted), strict=True))


def _measure(questions: Sequence[Question], orders: Mapping[str, Sequence[str]], wanted: Sequence[Any]) -> list[Values]:
    position = {question.query_id: index for index, question in enumerate(questions)}
    qrels = {question.query_id: dict(question.grades) for question in questions}
    # The negative rank, so that no tool breaks ties between scores in its own way.
    run = {query: {document: -float(rank) for rank, document in enumerate(order)} for query, order in orders.items()}
    values = {str(each): np.zeros(len(questions)) for each in wanted}
    if questions:
        for metric in iter_calc(wanted, qrels, run):
            values[str(metric.measure)][position[metric.query_id]] = metric.value
    return [values[str(each)] for each in wanted]


def measure_one(name: str, questions: Sequence[Question], orders: Mapping[str, Sequence[str]], *, level: int) -> Values:
    """One measure of all questions: see `measure`."""
    return _measure(questions, orders, [PREDICTED[name](level)])[0]


def measure_main(questions: Sequence[Question], orders: Mapping[str, Sequence[str]]) -> Values:
    """The main measure alone, which looks at the first ten of an order: see `measure`."""
    best = {query: order[:_LOOKED_AT] for query, order in orders.items()}
    return _measure(questions, best, [_MEASURES[MAIN_MEASURE](1)])[0]


def area_under_roc(positives: Values, negatives: Values) -> float | None:
    """The chance that a relevant pair's score is above an irrelevant one's, over all queries together (ties: half).

    None if either kind is missing.
    """
    if not len(positives) or not len(negatives):
        return None
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).mean() / (2 * len(negatives)))
