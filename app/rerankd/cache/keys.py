"""Cache keys. Pure.

A key is a hash over length-prefixed parts, so that ("ab", "c") is not ("a", "bc"); the store never sees a text. An
image follows its text, behind a length that no text has.
"""

import struct
from collections.abc import Generator, Iterator, Sequence
from hashlib import blake2b
from typing import Final, TypeVar

from rerankd.domain import Document

KEY_BYTES: Final = 16
_LENGTH = struct.Struct("<Q")
_IMAGE: Final = _LENGTH.pack(2**64 - 1)

# Hashing this many characters takes about a millisecond.
AT_A_TIME: Final = 2**19
Result = TypeVar("Result")
Steps = Generator[None, None, Result]


def pair_keys(fingerprint: str, query: str, documents: Sequence[str]) -> list[bytes]:
    """One key per document. `fingerprint` says everything else that changes a result (model, length, precision)."""
    common = blake2b(digest_size=KEY_BYTES)
    for part in (fingerprint, query):
        _add(common, part)
    _add_image(common, query)
    keys = []
    for document in documents:
        key = common.copy()
        encoded = document.encode("utf-8", "surrogatepass")
        key.update(_LENGTH.pack(len(encoded)) + encoded)
        if document.__class__ is Document:
            key.update(_IMAGE + document.digest)
        keys.append(key.digest())
    return keys


def pair_key(fingerprint: str, query: str, document: str) -> Steps[bytes]:
    """The same for one document, in steps of about a millisecond, however long it is; one step at least."""
    key = blake2b(digest_size=KEY_BYTES)
    for part in (fingerprint, query, document):
        yield from _added(key, part)
        _add_image(key, part)
    yield
    return key.digest()


def comparison_key(documents: Sequence[bytes]) -> bytes:
    """The key of documents in this order, from the keys that each has as a pair with the query."""
    return blake2b(b"".join(documents), digest_size=KEY_BYTES, person=b"comparison").digest()


def list_key(fingerprint: str, query: str, documents: Sequence[str]) -> Steps[bytes]:
    """The key of a whole list in its order, in steps of about a millisecond; of another kind than a pair's, whatever
    the texts are.
    """
    key = blake2b(digest_size=KEY_BYTES, person=b"list")
    done = 0
    for part in (fingerprint, query, *documents):
        yield from _added(key, part)
        _add_image(key, part)
        done += len(part)
        if done > AT_A_TIME:
            yield
            done = 0
    return key.digest()


def _add(digest: blake2b, text: str) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    digest.update(_LENGTH.pack(len(encoded)))
    digest.update(encoded)


def _add_image(digest: blake2b, text: str) -> None:
    if text.__class__ is Document:
        digest.update(_IMAGE + text.digest)


def _added(digest: blake2b, text: str) -> Steps[None]:
    """As `_add`, in steps: of a long text a part at a time."""
    if len(text) <= AT_A_TIME:
        _add(digest, text)
        return
    size = len(text)
    if not text.isascii():
        size = 0
        for part in _encoded(text):
            size += len(part)
            yield
    digest.update(_LENGTH.pack(size))
    for part in _encoded(text):
        digest.update(part)
        yield


def _encoded(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), AT_A_TIME):
        yield text[start : start + AT_A_TIME].encode("utf-8", "surrogatepass")
