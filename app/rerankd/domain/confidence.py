"""How sure a model is that its order of a request's documents is any good."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class ConfidenceMethod(StrEnum):
    """What confidence is made of: `fitted` is a regression on all sorted scores (`rerankd calibrate`); the others are
    the best relevance, the standard deviation of all, and the distance of the best two.
    """

    NONE = "none"
    FITTED = "fitted"
    MAX = "max"
    DEVIATION = "deviation"
    MARGIN = "margin"


_METHOD: Final = {
    "description": "`fitted` (by `rerankd calibrate`), `max`, `deviation`, `margin` (best minus second best) or "
    "`none`; default: `fitted` where that is known."
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidencePlan:
    """How confidence is found, and below which the answer abstains: a table of the registry, and a wish of a request.
    None: what lies beneath says, which is the operator's plan for a request, and the calibration for the operator.
    """

    method: ConfidenceMethod | None = field(default=None, metadata=_METHOD)
    threshold: float | None = field(
        default=None,
        metadata={
            "allow_inf_nan": False,
            "description": "Answers of a lower confidence say `abstained`; default: the calibration's, or none do.",
        },
    )

    def within(self, plan: "ConfidencePlan") -> "ConfidencePlan":
        """The operator's plan with these wishes. A threshold belongs to its method."""
        if self.method is None or self.method is plan.method:
            return ConfidencePlan(
                method=plan.method, threshold=plan.threshold if self.threshold is None else self.threshold
            )
        return self


@dataclass(frozen=True, slots=True)
class Confidence:
    """`abstained`: it is below the threshold, so that the order had better not be relied on."""

    value: float
    abstained: bool
