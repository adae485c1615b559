"""Turns raw scores into an order. Pure: knows no clock, thread or I/O."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from app.domain import BoolArray, FloatArray, RankedDocument
from app.errors import ScoringFailed

Activation = Callable[[FloatArray], FloatArray]


def sigmoid(values: FloatArray) -> FloatArray:
    """Map logits to (0, 1) without overflow."""
    halves = np.tanh(np.asarray(values, dtype=np.float64) / 2)
    return ((1 + halves) / 2).astype(np.float32)


def identity(values: FloatArray) -> FloatArray:
    return values


ACTIVATIONS: Final[Mapping[str, Activation]] = {"sigmoid": sigmoid, "identity": identity}


def rank(
    values: FloatArray,
    *,
    blank: BoolArray,
    activation: Activation,
    top_n: int | None,
    scored: BoolArray | None = None,
) -> list[RankedDocument]:
    """Sort documents by raw score, highest first, ties by index.

    Documents without a score come after those with one, in the order of the request, and blank ones last of all;
    their relevance is 0, or the lowest of the others where that is negative.

    Args:
        values: raw scores, shape [documents].
        blank: which documents have no text; their values are ignored.
        activation: from raw scores to relevance scores, monotone.
        top_n: how many to return; None returns all.
        scored: which documents have a score; None: all but the blank ones.

    Raises:
        ScoringFailed: a score is not a finite number.
    """
    ranked = ~blank if scored is None else ~blank & scored
    unusable = ranked & ~np.isfinite(values)
    if unusable.any():
        raise ScoringFailed(f"the model gave no finite score to document {int(np.argmax(unusable))}")
    known = np.where(ranked, values, np.float32(0))
    order = np.lexsort((-known, ~ranked, blank))[:top_n]
    relevance = activation(known)
    relevance = np.where(ranked, relevance, relevance[ranked].min(initial=np.float32(0)))
    raw = np.where(ranked, values, values[ranked].min() if ranked.any() else np.float32(0))
    late = ~blank & ~ranked
    return [
        RankedDocument(index, score, value, not unscored)
        for index, score, value, unscored in zip(
            order.tolist(), relevance[order].tolist(), raw[order].tolist(), late[order].tolist(), strict=True
        )
    ]
