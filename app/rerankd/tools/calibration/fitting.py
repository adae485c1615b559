"""Fits what a calibration says, and measures how good it is. Pure."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rerankd.errors import ConfigError
from rerankd.scorers.calibration import IsotonicMap, PlattMap

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

_STEPS: Final = 100
_CONVERGED: Final = 1e-10
_BINS: Final = 15


def fit_platt(scores: Values, relevant: Flags) -> PlattMap:
    """Logistic regression on one score, with Platt's targets: (n+ + 1)/(n+ + 2) and 1/(n- + 2) for 1 and 0. Newton
    steps that are halved until they help (Lin, Lin and Weng, "A Note on Platt's Probabilistic Outputs", 2007).

    Raises:
        ConfigError: relevance does not rise with the score.
    """
    positives, negatives = int(relevant.sum()), int((~relevant).sum())
    targets = np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    center, spread = float(scores.mean()), float(scores.std()) or 1.0
    inputs = np.stack([(scores - center) / spread, np.ones(len(scores))], axis=1)
    weights = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    loss = _logistic_loss(inputs @ weights, targets)
    for _ in range(_STEPS):
        probabilities = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (probabilities - targets)
        curvature = (inputs * (probabilities * (1 - probabilities))[:, None]).T @ inputs + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while (changed := _logistic_loss(inputs @ (weights - step), targets)) > loss and np.abs(
            step
        ).max() > _CONVERGED:
            step /= 2
        weights, loss = weights - step, changed
        if np.abs(step).max() <= _CONVERGED:
            break
    scale = float(weights[0]) / spread
    if scale <= 0:
        raise ConfigError("relevant documents do not score higher than others here: the model cannot be calibrated")
    return PlattMap(scale=scale, bias=float(weights[1]) - scale * center)


def fit_isotonic(scores: Values, relevant: Flags) -> IsotonicMap:
    """The non-decreasing probabilities of least squared error, by pooling adjacent violators (Ayer et al. 1955)."""
    levels, places = np.unique(scores, return_inverse=True)
    counts = np.bincount(places).astype(np.float64)
    sums = np.bincount(places, weights=relevant)
    # Each block: its sum, its count, and its first and last level.
    blocks: list[tuple[float, float, int, int]] = []
    for level, (total, count) in enumerate(zip(sums.tolist(), counts.tolist(), strict=True)):
        block = (total, count, level, level)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2], level)
        blocks.append(block)
    ends = [(float(levels[end]), total / count) for total, count, *edges in blocks for end in dict.fromkeys(edges)]
    return IsotonicMap(scores=tuple(score for score, _ in ends), probabilities=tuple(value for _, value in ends))


def fit_ridge(inputs: Values, targets: Values, *, alpha: float) -> tuple[Values, float]:
    """Weights and bias of the linear regression of targets of shape [queries] on inputs of shape [queries, features]
    with a penalty `alpha` on squared weights; none on the bias.
    """
    center, mean = inputs.mean(axis=0), float(targets.mean())
    centered = inputs - center
    weights: Values = np.linalg.solve(
        centered.T @ centered + alpha * np.eye(inputs.shape[1]), centered.T @ (targets - mean)
    )
    return weights, mean - float(center @ weights)


def expected_calibration_error(probabilities: Values, relevant: Flags, *, bins: int = _BINS) -> float:
    """The mean distance of what was said and what is true, over equal bins of probabilities (Guo et al. 2017)."""
    places = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    said = np.bincount(places, weights=probabilities, minlength=bins)
    true = np.bincount(places, weights=relevant, minlength=bins)
    return float(np.abs(said - true).sum() / len(probabilities))


def brier_score(probabilities: Values, relevant: Flags) -> float:
    """The mean squared error of probabilities."""
    return float(((probabilities - relevant) ** 2).mean())


def normalized_auc(confidences: Values, qualities: Values) -> float:
    """The area under the curve of mean quality by share of queries abstained from, least confident first: 0 for chance,
    1 for an oracle that knows each query's quality. 0 where all are equally good.
    """
    chance = float(qualities.mean())
    best = _area(qualities, qualities) - chance
    return (_area(confidences, qualities) - chance) / best if best > 0 else 0.0


def _area(confidences: Values, qualities: Values) -> float:
    """Queries of equal confidence are abstained from together, so that their order decides nothing."""
    places = np.unique(confidences, return_inverse=True)[1]
    means = np.bincount(places, weights=qualities) / np.bincount(places)
    kept = means[places][np.argsort(-confidences, kind="stable")]
    return float((np.cumsum(kept) / np.arange(1, len(kept) + 1)).mean())


def _sigmoid(logits: Values) -> Values:
    halves: Values = np.tanh(logits / 2)
    return (1 + halves) / 2


def _logistic_loss(logits: Values, targets: Values) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).sum())
