"""Anchors: a few scores of a request from which all its others are estimated."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorPlan:
    """How many documents are read of a request whose scores can be estimated; a table of the registry."""

    file: str = field(
        default="",
        metadata={"description": "A file of `rerankd anchors` (relative to the registry); without one all are read."},
    )
    anchors: int = field(
        default=20,
        metadata={"ge": 1, "le": 1000, "description": "Read this many documents first, and estimate the others."},
    )
    depth: int = field(
        default=50,
        metadata={
            "ge": 1,
            "le": 1000,
            "description": "Read this many in all, the highest estimates after the anchors.",
        },
    )
    cutoff: float = field(
        default=0.01,
        metadata={
            "ge": 0,
            "lt": 1,
            "allow_inf_nan": False,
            "description": "Singular values of the anchors' scores below this share of the largest count as 0.",
        },
    )
