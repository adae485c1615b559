"""Confidence intervals of means, and significance of differences. Pure and seeded, so reproducible.

Samples are one array per data set. The mean is the mean of the sets' means, so that each set counts the same.
Resampling stays within a set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_RESAMPLES = 2000
_PERMUTATIONS = 10_000
_CONFIDENCE = 0.95
_SEED = 20_240_607
_ELEMENTS_AT_A_TIME = 4_000_000
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of paired differences, and how likely one at least as large is if both are equally good."""

    mean: float
    p: float


def interval_of_mean(samples: Sequence[Values], *, resamples: int = _RESAMPLES) -> Interval:
    """The percentile bootstrap (Efron 1979) over queries."""
    generator = np.random.default_rng(_SEED)
    means = np.zeros(resamples)
    for values in samples:
        for rows in _chunks(resamples, width=len(values)):
            drawn = generator.integers(len(values), size=(rows.stop - rows.start, len(values)))
            means[rows] += values[drawn].mean(axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means / len(samples), (tail, 1 - tail))
    return Interval(_mean_of_means(samples), float(low), float(high))


def paired_difference(differences: Sequence[Values], *, permutations: int = _PERMUTATIONS) -> Difference:
    """The two-sided paired randomisation test (Fisher 1935; Smucker, Allan and Carterette 2007).

    The probability of a difference at least as large if both values of each query were swapped at random.
    """
    generator = np.random.default_rng(_SEED)
    observed = _mean_of_means(differences)
    by_chance = np.zeros(permutations)
    for values in differences:
        changed = values[values != 0]
        for rows in _chunks(permutations, width=len(changed)):
            flipped = generator.integers(2, size=(rows.stop - rows.start, len(changed)), dtype=np.int8)
            by_chance[rows] += (changed.sum() - 2 * (flipped @ changed)) / len(values)
    as_large = np.abs(by_chance / len(differences)) >= abs(observed) - _ROUNDING
    return Difference(observed, (1 + int(as_large.sum())) / (1 + permutations))


def _mean_of_means(samples: Sequence[Values]) -> float:
    return float(np.mean([values.mean() for values in samples]))


def _chunks(rows: int, *, width: int) -> Iterator[slice]:
    """Slices of rows that keep a chunk's memory bounded."""
    step = max(1, _ELEMENTS_AT_A_TIME // max(1, width))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
