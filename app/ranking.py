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


def rank(values: FloatArray, *, blank: BoolArray, activation: Activation, top_n: int | None) -> list[RankedDocument]:
    """Sort documents by raw score, highest first, ties by index.

    Blank documents come last, with relevance 0, or the lowest of the others where that is negative.

    Args:
        values: raw scores, shape [documents].
        blank: which documents have no text; their values are ignored.
        activation: from raw scores to relevance scores, monotone.
        top_n: how many to return; None returns all.

    Raises:
        ScoringFailed: a score is not a finite number.
    """
    unusable = ~blank & ~np.isfinite(values)
    if unusable.any():
        raise ScoringFailed(f"the model gave no finite score to document {int(np.argmax(unusable))}")
    keys = np.where(blank, -np.inf, values)
    order = np.argsort(-keys, kind="stable")[:top_n]
    relevance = activation(np.where(blank, np.float32(0), values))
    relevance = np.where(blank, relevance[~blank].min(initial=np.float32(0)), relevance)
    raw = np.where(blank, values[~blank].min() if not blank.all() else np.float32(0), values)
    return [
        RankedDocument(index, score, value)
        for index, score, value in zip(order.tolist(), relevance[order].tolist(), raw[order].tolist(), strict=True)
    ]
