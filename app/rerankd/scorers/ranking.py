"""Turns raw scores into an order. Pure: knows no clock, thread or I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import numpy as np

from rerankd.domain import FloatArray, RankedDocument, Scores
from rerankd.errors import ScoringFailed
from rerankd.recognition.activations import ActivationName, ActivationSetting, ScaledSigmoid

Activation = Callable[[FloatArray], FloatArray]


def sigmoid(values: FloatArray) -> FloatArray:
    """Map logits to (0, 1) without overflow."""
    halves = np.tanh(np.asarray(values, dtype=np.float64) / 2)
    return ((1 + halves) / 2).astype(np.float32)


def identity(values: FloatArray) -> FloatArray:
    return values


@dataclass(frozen=True, slots=True)
class _Scaled:
    setting: ScaledSigmoid

    def __call__(self, values: FloatArray) -> FloatArray:
        scaled = np.asarray(values, dtype=np.float64) * self.setting.scale + self.setting.bias
        return sigmoid(scaled.astype(np.float32))


_BY_NAME: Final[Mapping[ActivationName, Activation]] = {"sigmoid": sigmoid, "identity": identity}


def activation_of(setting: ActivationSetting) -> Activation:
    """The function that a setting names."""
    return _Scaled(setting) if isinstance(setting, ScaledSigmoid) else _BY_NAME[setting]


# The sigmoid of this is 0 in any usual precision.
_NO_RELEVANCE: Final = np.float32(-16)


def rank(scores: Scores, *, activation: Activation, top_n: int | None) -> list[RankedDocument]:
    """Sort documents by raw score, or by fused score if there is one: highest first, ties by index.

    Documents without a score come after those with one, in the order of the request, and blank ones last of all. Both
    kinds of scores say so too: see `floor`.

    Args:
        scores: those of all documents; the values of documents without a score are ignored.
        activation: from raw scores to relevance scores, monotone.
        top_n: how many to return; None returns all.

    Raises:
        ScoringFailed: a score is not a finite number.
    """
    values = scores.values
    blank = np.zeros(len(values), dtype=np.bool_) if scores.blank is None else scores.blank
    ranked = ~blank if scores.scored is None else ~blank & scores.scored
    unusable = ranked & ~np.isfinite(values)
    if unusable.any():
        raise ScoringFailed(f"the model's score of document {int(np.argmax(unusable))} is not a finite number")
    raw = values if ranked.all() else np.where(ranked, values, floor(values[ranked], activation))
    merits = raw if scores.fused is None else scores.fused.values
    order = np.lexsort((-merits, ~ranked, blank))[:top_n]
    relevance = activation(raw)
    relevance = np.where(ranked, relevance, np.minimum(relevance, np.float32(0)))
    in_time = blank | ranked
    names = repeat(None) if scores.placed_by is None else scores.placed_by[order].tolist()
    columns = order.tolist(), relevance[order].tolist(), raw[order].tolist(), in_time[order].tolist()
    if scores.fused is None:
        return list(map(RankedDocument, *columns, names))
    fused = np.where(ranked, scores.fused.relevance, 0)
    return list(map(RankedDocument, columns[0], fused[order].tolist(), *columns[2:], names, columns[1]))


def floor(values: FloatArray, activation: Activation) -> np.float32:
    """The raw score of documents without one: what means no relevance at all, which is 0 where a raw 0 does, and -16
    for logits; or one less than the lowest of the others, where that is not below it.
    """
    most = np.float32(0) if activation(np.zeros(1, dtype=np.float32))[0] == 0 else _NO_RELEVANCE
    lowest = values.min(initial=np.float32(np.inf))
    if lowest > most:
        return most
    return min(lowest - np.float32(1), np.nextafter(lowest, np.finfo(np.float32).min))
