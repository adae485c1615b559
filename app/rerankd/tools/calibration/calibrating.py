"""Makes a calibration from what a model answers to judged questions, and measures it on questions held out. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from rerankd.domain import ConfidenceMethod, FloatArray
from rerankd.errors import ConfigError
from rerankd.scorers.calibration import Calibration, FittedConfidence, simple_confidence, sorted_scores
from rerankd.tools.calibration.fitting import (
    Flags,
    Values,
    brier_score,
    expected_calibration_error,
    fit_isotonic,
    fit_platt,
    fit_ridge,
    normalized_auc,
)
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.measures import measure_one
from rerankd.tools.evaluation.targets import Ranked

# By data set, then by query.
Answers = Mapping[str, Mapping[str, Ranked]]

_ALPHA: Final = 0.1
# Fewer say nothing about a quantile.
_FEWEST_QUESTIONS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is fitted: `measure` is what confidence predicts, from the best `size` scores; `abstain` is the share of
    reference questions whose answers would abstain.
    """

    method: Literal["platt", "isotonic"]
    measure: str
    size: int
    abstain: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """The scores of pairs, what the model made of them, and which are relevant; all of shape [pairs]."""

    scores: Values
    relevance: Values
    relevant: Flags

    @classmethod
    def of(cls, data_sets: Sequence[DataSet], answers: Answers) -> "Pairs":
        """All candidates; one without a judgement counts as irrelevant."""
        rows = [
            (value, relevance, question.grades.get(question.document_ids[index], 0) >= data_set.level)
            for data_set, question, answer in _answered(data_sets, answers)
            for index, value, relevance in zip(answer.order, answer.values, answer.relevance_scores, strict=True)
        ]
        scores, relevance, relevant = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return cls(scores, relevance, relevant.astype(np.bool_))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good probabilities and confidences are; the latter (`nauc`) by method, empty for sets of judged pairs."""

    name: str
    pairs: int
    relevant: int
    error_before: float
    error_after: float
    brier_before: float
    brier_after: float
    nauc: Mapping[str, float]
    abstained: float


def calibrate(
    data_sets: Sequence[DataSet], answers: Answers, wanted: Wanted, *, details: Mapping[str, Any]
) -> Calibration:
    """Fit a calibration to a model's answers.

    Raises:
        ConfigError: the sets have no relevant, no irrelevant pairs, or relevance does not rise with the score.
    """
    pairs = Pairs.of(data_sets, answers)
    if not pairs.relevant.any() or pairs.relevant.all():
        raise ConfigError("a calibration needs relevant and irrelevant candidates; these sets have one kind only")
    fit = {"platt": fit_platt, "isotonic": fit_isotonic}[wanted.method]
    return Calibration(
        relevance=fit(pairs.scores, pairs.relevant),
        confidence=_fit_confidence(data_sets, answers, wanted),
        details=details,
    )


def _fit_confidence(data_sets: Sequence[DataSet], answers: Answers, wanted: Wanted) -> FittedConfidence | None:
    """None where too few questions have an order that can be measured."""
    rankings, qualities = _rankings(data_sets, answers, wanted.measure)
    if len(rankings) < _FEWEST_QUESTIONS:
        return None
    inputs = np.stack([sorted_scores(values, size=wanted.size) for values in rankings])
    weights, bias = fit_ridge(inputs, qualities, alpha=_ALPHA)
    return FittedConfidence(
        measure=wanted.measure,
        weights=tuple(weights.tolist()),
        bias=bias,
        threshold=float(np.quantile(inputs @ weights + bias, wanted.abstain)),
    )


def judge(data_set: DataSet, answers: Answers, calibration: Calibration, *, measure: str) -> Quality:
    """How good a calibration is for a set."""
    pairs = Pairs.of([data_set], answers)
    after = calibration.relevance.activation(pairs.scores.astype(np.float32)).astype(np.float64)
    # What a model says need not be a probability: cosines may be below 0.
    before = np.clip(pairs.relevance, 0, 1)
    rankings, qualities = _rankings([data_set], answers, measure)
    confidences = _confidences(rankings, calibration)
    fitted = confidences.get(ConfidenceMethod.FITTED)
    threshold = calibration.confidence.threshold if calibration.confidence else 0.0
    return Quality(
        name=data_set.name,
        pairs=len(pairs.scores),
        relevant=int(pairs.relevant.sum()),
        error_before=expected_calibration_error(before, pairs.relevant),
        error_after=expected_calibration_error(after, pairs.relevant),
        brier_before=brier_score(before, pairs.relevant),
        brier_after=brier_score(after, pairs.relevant),
        nauc={method: normalized_auc(values, qualities) for method, values in confidences.items()},
        abstained=0.0 if fitted is None else float((fitted < threshold).mean()),
    )


def _confidences(rankings: Sequence[FloatArray], calibration: Calibration) -> dict[ConfidenceMethod, Values]:
    if not rankings:
        return {}
    activation = calibration.relevance.activation
    simple = (ConfidenceMethod.MAX, ConfidenceMethod.DEVIATION, ConfidenceMethod.MARGIN)
    confidences = {
        method: np.array([simple_confidence(method, activation(values)) for values in rankings]) for method in simple
    }
    fitted = calibration.confidence
    if fitted is not None:
        confidences[ConfidenceMethod.FITTED] = np.array([fitted.predict(values) for values in rankings])
    return confidences


def _rankings(data_sets: Sequence[DataSet], answers: Answers, measure: str) -> tuple[list[FloatArray], Values]:
    """The raw scores of each measurable question, and the measure of its order."""
    rankings: list[FloatArray] = []
    qualities = [np.zeros(0)]
    for data_set in data_sets:
        of_set = answers.get(data_set.name, {})
        questions = [question for question in data_set.ranked if _scored(of_set.get(question.query_id))]
        orders = {
            question.query_id: [question.document_ids[index] for index in of_set[question.query_id].order]
            for question in questions
        }
        qualities.append(measure_one(measure, questions, orders, level=data_set.level))
        rankings += [np.array(of_set[question.query_id].values, dtype=np.float32) for question in questions]
    return rankings, np.concatenate(qualities)


def _answered(data_sets: Sequence[DataSet], answers: Answers) -> list[tuple[DataSet, Question, Ranked]]:
    return [
        (data_set, question, answer)
        for data_set in data_sets
        for question in data_set.questions
        if _scored(answer := answers.get(data_set.name, {}).get(question.query_id)) and answer is not None
    ]


def _scored(answer: Ranked | None) -> bool:
    return answer is not None and len(answer.values) > 0
