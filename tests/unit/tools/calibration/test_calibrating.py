"""A calibration from answers: good on questions it has not seen, and refused where nothing can be learnt."""

import numpy as np
import pytest

from rerankd.errors import ConfigError
from rerankd.scorers.calibration import IsotonicMap, PlattMap
from rerankd.tools.calibration.calibrating import Answers, Wanted, calibrate, judge
from rerankd.tools.evaluation.datasets import DataSet, Question
from rerankd.tools.evaluation.targets import Answer

_CANDIDATES = 15
_PLATT = Wanted(method="platt", measure="nDCG@10", size=10, abstain=0.25)
_ISOTONIC = Wanted(method="isotonic", measure="AP", size=10, abstain=0.25)


def _made(name: str, *, seed: int, questions: int = 120) -> tuple[DataSet, Answers]:
    """Scores are too sure of themselves by a factor of three; half of the questions are pure noise."""
    random = np.random.default_rng(seed)
    asked, answers = [], dict[str, Answer]()
    for number in range(questions):
        logits = random.normal(loc=-1, scale=2 if number % 2 else 0.05, size=_CANDIDATES)
        relevant = random.random(_CANDIDATES) < 1 / (1 + np.exp(-logits))
        values = np.sort(3 * logits)[::-1]
        order = np.argsort(-logits).tolist()
        grades = {f"d{place}": int(flag) for place, flag in enumerate(relevant)}
        asked.append(Question(f"q{number}", "", list(grades), grades))
        answers[f"q{number}"] = Answer(order, (1 / (1 + np.exp(-values))).tolist(), 0.1, values.tolist())
    made = DataSet(name=name, questions=asked, texts={}, candidates="run", judgements="qrels", unjudged=0)
    return made, {name: answers}


@pytest.mark.parametrize(("wanted", "kind"), [(_PLATT, PlattMap), (_ISOTONIC, IsotonicMap)])
def test_what_was_too_sure_is_right_on_questions_held_out(wanted: Wanted, kind: type) -> None:
    fitted, answers = _made("fitted", seed=0)
    other, other_answers = _made("other", seed=1)
    calibration = calibrate([fitted], answers, wanted, details={})
    assert isinstance(calibration.relevance, kind)
    quality = judge(other, other_answers, calibration, measure=wanted.measure)
    assert quality.error_after < 0.05 < quality.error_before
    assert quality.brier_after < quality.brier_before
    assert quality.nauc["fitted"] > 0.3
    assert 0.1 < quality.abstained < 0.4
    assert quality.pairs == 120 * _CANDIDATES


def test_a_quarter_of_the_reference_questions_would_abstain() -> None:
    fitted, answers = _made("fitted", seed=0)
    calibration = calibrate([fitted], answers, _PLATT, details={})
    abstained = judge(fitted, answers, calibration, measure="nDCG@10").abstained
    assert abstained == pytest.approx(0.25, abs=1 / len(fitted.ranked))


def test_too_few_questions_give_no_confidence() -> None:
    fitted, answers = _made("fitted", seed=0, questions=10)
    assert calibrate([fitted], answers, _PLATT, details={}).confidence is None


def test_one_kind_of_pairs_is_refused() -> None:
    fitted, answers = _made("fitted", seed=0, questions=3)
    with pytest.raises(ConfigError, match="relevant and irrelevant candidates"):
        calibrate([fitted.with_level(9)], answers, _PLATT, details={})
