"""Cache keys and the bytes kept under them. Pure.

A key is a hash over length-prefixed parts, so that ("ab", "c") is not ("a", "bc"); the store never sees a text.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b
from math import isfinite
from typing import Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

KEY_BYTES: Final = 16
_LENGTH = struct.Struct("<Q")
_VALUE = struct.Struct("<f")

ENTRY = np.dtype([("value", "<f4"), ("tokens", "<u4"), ("dropped", "<u4")])


def pair_keys(fingerprint: str, query: str, documents: Sequence[str]) -> list[bytes]:
    """One key per document. `fingerprint` says everything else that changes a score (model, length, precision)."""
    common = blake2b(digest_size=KEY_BYTES)
    for part in (fingerprint, query):
        _add(common, part)
    keys = []
    for document in documents:
        key = common.copy()
        _add(key, document)
        keys.append(key.digest())
    return keys


def list_key(fingerprint: str, query: str, documents: Sequence[str]) -> bytes:
    """The key of a whole list in its order; of another kind than a pair's, whatever the texts are."""
    key = blake2b(digest_size=KEY_BYTES, person=b"list")
    for part in (fingerprint, query, *documents):
        _add(key, part)
    return key.digest()


def pack_entries(entries: NDArray[np.void]) -> list[bytes]:
    """Bytes to store, one element of `entries` (dtype `ENTRY`) each."""
    whole = entries.tobytes()
    return [whole[start : start + ENTRY.itemsize] for start in range(0, len(whole), ENTRY.itemsize)]


def unpack_entries(stored: Sequence[bytes]) -> NDArray[np.void]:
    """Stored bytes as an array of dtype `ENTRY`."""
    return np.frombuffer(b"".join(stored), dtype=ENTRY)


def is_entry(stored: bytes | None) -> TypeGuard[bytes]:
    """Whether bytes can be an entry with a score: a shared store may hold anything under our key, and a score that is
    no number is not worth keeping.
    """
    return stored is not None and len(stored) == ENTRY.itemsize and isfinite(_VALUE.unpack_from(stored)[0])


def is_list(stored: bytes | None, *, length: int) -> TypeGuard[bytes]:
    """Whether bytes can be the entries of so many documents."""
    if stored is None or len(stored) != length * ENTRY.itemsize:
        return False
    return bool(np.isfinite(unpack_entries([stored])["value"]).all())


def _add(digest: blake2b, text: str) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    digest.update(_LENGTH.pack(len(encoded)))
    digest.update(encoded)
