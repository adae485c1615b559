"""What a calibration file says, and what is made of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from rerankd.config.registry import ModelSpec
from rerankd.domain import Confidence, ConfidenceMethod, ConfidencePlan, FloatArray
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers.calibration import (
    CALIBRATION_FILE,
    Calibration,
    ConfidenceEstimator,
    FittedConfidence,
    PlattMap,
    simple_confidence,
    sorted_scores,
)
from rerankd.serving.model_files import model_content

_FITTED = FittedConfidence(measure="AP", weights=(0.5, 0.25, 2.0), bias=-1, threshold=0.5)


def _array(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float32)


def test_scores_are_sorted_and_the_lowest_fills_up_a_short_list() -> None:
    assert sorted_scores(_array(3, 1, 2), size=3).tolist() == [1, 2, 3]
    assert sorted_scores(_array(3, 1, 2, 9), size=2).tolist() == [3, 9]
    assert sorted_scores(_array(3, 1), size=4).tolist() == [1, 1, 1, 3]


def test_confidence_is_the_regression_and_abstains_below_its_threshold() -> None:
    estimator = ConfidenceEstimator(ConfidencePlan(), _FITTED)
    plan = estimator.resolve(ConfidencePlan())
    sure = estimator.estimate(plan, _array(1, 2, -1), _array(0, 0, 0))
    assert sure == Confidence(-1 + 0.5 * -1 + 0.25 * 1 + 2 * 2, abstained=False)
    unsure = estimator.estimate(plan, _array(0.5, 0.5), _array(0, 0))
    assert unsure == Confidence(-1 + 0.5 * 2.75, abstained=True)
    assert estimator.estimate(plan, _array(), _array()) is None


@pytest.mark.parametrize(
    ("method", "expected"),
    [(ConfidenceMethod.MAX, 0.75), (ConfidenceMethod.MARGIN, 0.25), (ConfidenceMethod.DEVIATION, 0.2795085)],
)
def test_what_needs_no_fitting(method: ConfidenceMethod, expected: float) -> None:
    relevance = _array(0.5, 0.75, 0, 0.25)
    assert simple_confidence(method, relevance) == pytest.approx(expected)
    assert simple_confidence(ConfidenceMethod.MARGIN, _array(0.4)) == pytest.approx(0.4)


def test_a_request_s_method_brings_its_own_threshold() -> None:
    estimator = ConfidenceEstimator(ConfidencePlan(method=ConfidenceMethod.MAX, threshold=0.3), _FITTED)
    assert estimator.resolve(ConfidencePlan()) == estimator.plan
    assert estimator.resolve(ConfidencePlan(threshold=0.9)).threshold == 0.9
    assert estimator.resolve(ConfidencePlan(method=ConfidenceMethod.MARGIN)).threshold is None
    assert estimator.resolve(ConfidencePlan(method=ConfidenceMethod.FITTED)).threshold == 0.5
    bare = ConfidenceEstimator(ConfidencePlan(), None)
    assert bare.resolve(ConfidencePlan()).method is ConfidenceMethod.NONE
    with pytest.raises(InvalidRequest, match="nothing is fitted"):
        bare.resolve(ConfidencePlan(method=ConfidenceMethod.FITTED))


def test_a_file_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    calibration = Calibration(relevance=PlattMap(scale=2, bias=-1), confidence=_FITTED, details={"depth": 100})
    path = tmp_path / CALIBRATION_FILE
    path.write_text(calibration.model_dump_json())
    assert Calibration.read(path) == calibration
    assert calibration.relevance.activation(_array(0.5)).tolist() == [0.5]
    assert calibration.model_copy(update={"details": {}}).fingerprint == calibration.fingerprint
    assert calibration.model_copy(update={"confidence": None}).fingerprint != calibration.fingerprint


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not a calibration"),
        ({"relevance": {"method": "platt", "scale": -1, "bias": 0}}, "scale must be greater than 0"),
        ({"relevance": {"method": "platt", "scale": 1e300, "bias": 0}}, "scale must be at most"),
        ({"relevance": {"method": "isotonic", "scores": [1, 0], "probabilities": [0, 1]}}, "must not fall"),
        ({"relevance": {"method": "isotonic", "scores": [1], "probabilities": [0, 1]}}, "equally many"),
        ({"relevance": {"method": "isotonic", "scores": [1], "probabilities": [2]}}, "at most 1"),
        ({"relevance": {"method": "magic"}}, "is not a calibration"),
        (None, "cannot read"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, content: object, complaint: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=complaint) as raised:
        Calibration.read(path)
    assert str(path) in str(raised.value)


def test_raw_scores_stay_cached_when_a_model_is_calibrated(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    spec = ModelSpec(name="m", path=str(tmp_path))
    before = model_content(spec, tmp_path)
    (tmp_path / CALIBRATION_FILE).write_text("{}")
    assert model_content(spec, tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert model_content(spec, tmp_path) != before


@pytest.mark.parametrize("field", [{"calibration": "c.json"}, {"confidence": {"method": "max"}}])
def test_a_cascade_cannot_be_calibrated(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a cascade's scores only say the order"):
        ModelSpec.model_validate({"name": "m", "stages": ["a"], **field})
