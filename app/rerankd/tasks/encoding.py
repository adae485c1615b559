"""Token ids of one sequence: what goes into a pass that reads and does not write, and the rows that come out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rerankd.domain import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Encoding:
    """The token ids of one sequence, shape [length]. Ids from `boundary` on belong to segment 1; those before it are
    the query's part, which a request's encodings share and an engine may compute once.
    """

    ids: IntArray
    boundary: int


@dataclass(frozen=True, slots=True)
class PromptEncoding(Encoding):
    """A prompt over one document. `passage`: where the part of the prompt that holds the document begins and ends."""

    passage: tuple[int, int]


def identities_of(encodings: Sequence[Encoding]) -> list[bytes]:
    """What tells each encoding from every other of the same model."""
    return [encoding.boundary.to_bytes(8) + encoding.ids.tobytes() for encoding in encodings]


def lengths_of(encodings: Sequence[Encoding]) -> list[int]:
    """How many tokens each encoding has."""
    return [len(encoding.ids) for encoding in encodings]


def stacked(rows: Iterable[FloatArray]) -> FloatArray:
    """Rows of logits, at least one, as one array of shape [rows, k]."""
    if isinstance(rows, np.ndarray):
        return rows
    listed = list(rows)
    return np.concatenate(listed).reshape(len(listed), -1)
