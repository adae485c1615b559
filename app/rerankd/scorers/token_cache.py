"""Remembers the token ids of documents: popular ones come back with other queries, and tokenizing is then saved."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerankd.cache.lru import ENTRY_BYTES, Lru
from rerankd.scorers.visible import LOOKED_AT

# A key, the tuple, the array without its elements, and a number.
_OBJECTS_BYTES: Final = 64 + 80 + 128 + 32

_CUT: Final = b"beginning"


class DocumentTokens(NamedTuple):
    """`ids` are the document's first tokens, as many as were asked for or more; `total` is how many it has in all.

    Half as wide as what engines take, because most of them are kept for long.
    """

    ids: NDArray[np.int32]
    total: int


class TokenCache:
    """Keeps documents' tokens in at most `max_bytes`, least recently used out first. Safe to use from threads.

    Documents are known by a hash of their text, so that the texts themselves are not kept, and only to the owner for
    whom they were tokenized: others cannot learn from the time it takes, nor push them out. One that is kept whole is
    known for every room; one that was cut is known for the room that it was cut to.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._known: Lru[bytes, DocumentTokens] = Lru(max_size=max_bytes, size_of=_size)
        self._lock = Lock()

    @property
    def size(self) -> int:
        """Bytes that are taken."""
        return self._known.size

    def get(
        self,
        documents: Sequence[str],
        tokenize: Callable[[Sequence[str]], Sequence[DocumentTokens]],
        *,
        room: int,
        most: int = LOOKED_AT,
        owner: str = "",
    ) -> list[DocumentTokens]:
        """Return the tokens of every document; those that are not known are tokenized, in one call, by at most their
        first `most` characters and their length.
        """
        person = blake2b(owner.encode(), digest_size=16).digest()
        digests = [_digest(text, person, most) for text in documents]
        found = self._look_up(digests, room)
        missing = [position for position, tokens in enumerate(found) if tokens is None]
        if missing:
            fresh = tokenize([documents[position] for position in missing])
            for position, tokens in zip(missing, fresh, strict=True):
                found[position] = tokens
            self._keep([digests[position] for position in missing], fresh, room, owner)
        return [tokens for tokens in found if tokens is not None]

    def _look_up(self, digests: Sequence[bytes], room: int) -> list[DocumentTokens | None]:
        cut = _cut_to(room)
        with self._lock:
            return [self._known.get(digest) or self._known.get(digest + cut) for digest in digests]

    def _keep(self, digests: Sequence[bytes], fresh: Sequence[DocumentTokens], room: int, owner: str) -> None:
        cut = _cut_to(room)
        with self._lock:
            for digest, tokens in zip(digests, fresh, strict=True):
                key = digest if len(tokens.ids) == tokens.total else digest + cut
                self._known.put(key, tokens, owner=owner)


def _digest(text: str, person: bytes, most: int) -> bytes:
    """The hash of what a document's tokens depend on."""
    if len(text) <= most:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=person).digest()
    beginning = text[:most].encode("utf-8", "surrogatepass")
    digest = blake2b(beginning, digest_size=16, person=person, salt=_CUT)
    digest.update(len(text).to_bytes(8))
    return digest.digest()


def _cut_to(room: int) -> bytes:
    return room.to_bytes(8)


def _size(_key: bytes, tokens: DocumentTokens) -> int:
    return ENTRY_BYTES + _OBJECTS_BYTES + tokens.ids.nbytes
