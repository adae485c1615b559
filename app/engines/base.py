"""What an engine is: token ids in, logits out, on some device. It knows neither queries nor documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from app.domain import Encoding, FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine is loaded from. `workers` is how many forward passes may run at a time; None: its choice.
    `output_tokens` are the tokens whose logits a language model is to give; empty: the model has a head of its own.
    """

    folder: Path
    pad_id: int
    output_tokens: Sequence[int] = ()
    workers: int | None = None
    trust_remote_code: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much of a model's work one forward pass should hold on this device, in padded tokens and in pairs."""

    tokens: int
    pairs: int


class Engine(Protocol):
    """`forward` may be called from `workers` threads at a time. It raises whatever the runtime raises."""

    @property
    def name(self) -> str:
        """Backend, device and precision, for people and for cache keys: what changes a score by rounding."""

    @property
    def workers(self) -> int: ...

    @property
    def preferred_batch(self) -> BatchLimits: ...

    def forward(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score sequences; the result has shape [sequences, outputs of the head]."""


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Arrays of shape [sequences, longest], int64, as every exported transformer takes them."""

    input_ids: IntArray
    attention_mask: IntArray
    token_type_ids: IntArray


def pad(encodings: Sequence[Encoding], *, pad_id: int) -> PaddedBatch:
    """Lay sequences out in rows of equal length, padded on the right."""
    shape = len(encodings), max(len(encoding.ids) for encoding in encodings)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        input_ids[row, :length] = encoding.ids
        attention_mask[row, :length] = 1
        token_type_ids[row, encoding.boundary : length] = 1
    return PaddedBatch(input_ids, attention_mask, token_type_ids)
