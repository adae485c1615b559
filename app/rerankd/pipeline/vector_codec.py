"""How a text's vectors become a cache entry, and an entry becomes vectors again. Pure.

Entries begin with a mark, as those of `score_codec` do, then say how many tokens the model read of the text and how
many it did not. The vectors follow as they lie in memory.
"""

import struct
from typing import Final, NamedTuple

import numpy as np

from rerankd.scorers.base import VectorForm, Vectors

_MARK: Final = b"ve01"
_HEAD: Final = struct.Struct("<4sII")


class Entry(NamedTuple):
    """What is known of one text."""

    vectors: Vectors
    tokens: int
    dropped: int


class VectorCodec:
    """Packs vectors of one form, little-endian."""

    def __init__(self, form: VectorForm) -> None:
        self._form = form

    def write(self, entry: Entry) -> bytes:
        return _HEAD.pack(_MARK, entry.tokens, entry.dropped) + entry.vectors.tobytes()

    def read(self, stored: bytes | None) -> Entry | None:
        """None for what is no such entry: a store may hold anything under our keys."""
        if stored is None or len(stored) <= _HEAD.size:
            return None
        mark, tokens, dropped = _HEAD.unpack_from(stored)
        if mark != _MARK:
            return None
        try:
            vectors = np.frombuffer(stored, self._form.dtype, offset=_HEAD.size).reshape(self._form.shape)
        except ValueError:
            return None
        return Entry(vectors, tokens, dropped) if is_finite(vectors) else None


def is_finite(vectors: Vectors) -> bool:
    """Whether all of its numbers are finite."""
    names = vectors.dtype.names
    return bool(
        np.isfinite(vectors).all() if names is None else all(np.isfinite(vectors[name]).all() for name in names)
    )
