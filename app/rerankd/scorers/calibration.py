"""What `rerankd calibrate` has found out about a model: what its raw scores mean as probabilities, and how sure it is
of the order of a request's documents. Pure, but for reading the file.

Confidence: Gisserot-Boukhlef et al., "Towards Trustworthy Reranking: A Simple yet Effective Abstention Mechanism",
TMLR 2024.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rerankd.config.options import explain
from rerankd.domain import Confidence, ConfidenceMethod, ConfidencePlan, FloatArray
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.recognition.activations import ScaledSigmoid
from rerankd.scorers.ranking import Activation, activation_of

# Beside a model's weights.
CALIBRATION_FILE: Final = "rerankd_calibration.json"

# Larger ones are no fit of anything, and their sums would not be finite.
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class PlattMap(BaseModel):
    """The probability is sigmoid(scale * score + bias): Platt, "Probabilistic Outputs for SVMs", 1999."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["platt"] = "platt"
    scale: Number = Field(gt=0)
    bias: Number

    @property
    def activation(self) -> Activation:
        return activation_of(ScaledSigmoid(scale=self.scale, bias=self.bias))


class IsotonicMap(BaseModel):
    """Probabilities of some scores, neither of which ever falls. Between them lie straight lines, beyond them nothing
    changes: Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", 2002.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["isotonic"] = "isotonic"
    scores: tuple[Number, ...] = Field(min_length=1)
    probabilities: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _never_falls(self) -> "IsotonicMap":
        if len(self.scores) != len(self.probabilities):
            raise ValueError("scores and probabilities must be equally many")
        if (np.diff(self.scores) < 0).any() or (np.diff(self.probabilities) < 0).any():
            raise ValueError("scores and probabilities must not fall")
        return self

    @property
    def activation(self) -> Activation:
        scores, probabilities = np.array(self.scores), np.array(self.probabilities)

        def interpolate(values: FloatArray) -> FloatArray:
            interpolated: FloatArray = np.interp(values, scores, probabilities).astype(np.float32)
            return interpolated

        return interpolate


class FittedConfidence(BaseModel):
    """A linear regression of a measure of a ranking on its scores, sorted in ascending order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: str = Field(description="What is predicted, as nDCG@10.")
    weights: tuple[Number, ...] = Field(min_length=1)
    bias: Number
    threshold: Number = Field(description="A quantile of the confidences of reference queries.")

    def predict(self, values: FloatArray) -> float:
        """The measure that a ranking with these raw scores is expected to have."""
        return self.bias + float(sorted_scores(values, size=len(self.weights)) @ np.array(self.weights))


class Calibration(BaseModel):
    """A file of `rerankd calibrate`. `details` say where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relevance: Annotated[PlattMap | IsotonicMap, Field(discriminator="method")]
    confidence: FittedConfidence | None = None
    details: Mapping[str, Any] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Read a calibration.

        Raises:
            ConfigError: there is no such file, or it is not one of `rerankd calibrate`.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read the calibration {path} ({error.strerror})") from None
        except ValidationError as error:
            raise ConfigError(f"{path} is not a calibration: {explain(error, cls)}; run rerankd calibrate") from None

    @property
    def fingerprint(self) -> str:
        """Tells calibrations apart: answers differ by it, and raw scores do not."""
        said = self.model_dump_json(exclude={"details"})
        return blake2b(said.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class ConfidenceEstimator:
    """`plan` is the operator's, `fitted` the calibration's, None where there is none."""

    plan: ConfidencePlan
    fitted: FittedConfidence | None

    def resolve(self, wishes: ConfidencePlan) -> ConfidencePlan:
        """The plan with a request's wishes; it names a method.

        Raises:
            InvalidRequest: the request wishes for a fitted one, and nothing is fitted.
        """
        plan = wishes.within(self.plan)
        method = plan.method or (ConfidenceMethod.FITTED if self.fitted else ConfidenceMethod.NONE)
        threshold = plan.threshold
        if method is ConfidenceMethod.NONE and wishes.method is None and wishes.threshold is not None:
            raise InvalidRequest(
                "confidence.threshold: this model has no method of its own; add method: max, deviation or margin"
            )
        if method is ConfidenceMethod.FITTED:
            if self.fitted is None:
                raise InvalidRequest(
                    "confidence.method: nothing is fitted for this model; use max, deviation or margin"
                )
            threshold = self.fitted.threshold if threshold is None else threshold
        return ConfidencePlan(method=method, threshold=threshold)

    def estimate(self, plan: ConfidencePlan, values: FloatArray, relevance: FloatArray) -> Confidence | None:
        """The confidence in a ranking with these raw scores and their relevance, by a plan that was resolved; None
        where nobody wants it, or nothing was scored.
        """
        if plan.method in (None, ConfidenceMethod.NONE) or not len(values):
            return None
        if plan.method is ConfidenceMethod.FITTED and self.fitted:
            value = self.fitted.predict(values)
        else:
            value = simple_confidence(ConfidenceMethod(plan.method), relevance)
        return Confidence(value, abstained=plan.threshold is not None and value < plan.threshold)


def simple_confidence(method: ConfidenceMethod, relevance: FloatArray) -> float:
    """What needs no fitting, of relevance scores of shape [documents], at least one."""
    if method is ConfidenceMethod.MAX:
        return float(relevance.max())
    if method is ConfidenceMethod.DEVIATION:
        return float(relevance.std(dtype=np.float64))
    best = np.sort(relevance)[-2:]
    return float(best[-1] - best[0]) if len(best) > 1 else float(best[0])


def sorted_scores(values: FloatArray, *, size: int) -> NDArray[np.float64]:
    """The best `size` scores in ascending order. Fewer are preceded by copies of the lowest one, as if there were more
    documents that fit as little.
    """
    best = np.sort(values.astype(np.float64))[-size:]
    return np.pad(best, (size - len(best), 0), mode="edge")
