"""Holds our scores against those of a family's oracle, and records how far apart they are."""

import json
import os

import numpy as np

from docs.generate import DIFFERENCES
from rerankd.domain import FloatArray

TOLERANCE = 1e-4


def hold(family: str, ours: FloatArray, expected: FloatArray, *, first: bool) -> None:
    """Hold scores against the oracle's, and record the largest difference; `first`: of the family's tests."""
    difference = float(np.abs(ours - expected).max())
    assert difference <= TOLERANCE, (ours, expected)
    assert np.ptp(expected) > 100 * TOLERANCE, "all scores are alike: they would agree whatever is read"
    if os.environ.get("RERANKD_TEST_RECORD"):
        known = json.loads(DIFFERENCES.read_text())
        known[family] = max(difference, 0.0 if first else known.get(family, 0.0))
        DIFFERENCES.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
