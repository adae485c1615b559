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
# Of weights and coordinates. Of a word's number, too: an array of as many places is made for the query's words.
_LARGEST: Final = 1e7


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
        return Entry(vectors, tokens, dropped) if is_comparable(vectors) else None


def is_comparable(vectors: Vectors) -> bool:
    """Whether all of its numbers are finite, and so small that comparing two such vectors gives a finite score. No
    model gives larger ones; a store that others write to may.
    """
    names = vectors.dtype.names
    return all(_are_small(vectors if name is None else vectors[name]) for name in names or (None,))


def _are_small(numbers: Vectors) -> bool:
    if numbers.dtype == np.float16:
        return bool(np.isfinite(numbers).all())
    # Written so that NaN is no small number.
    return bool((np.abs(numbers) <= _LARGEST).all())
