"""Remembers the token ids of documents: popular ones come back with other queries, and tokenising is then saved."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Key = tuple[bytes, int | None]


class DocumentTokens(NamedTuple):
    """`ids` are the document's first tokens, as many as were asked for or more; `total` is how many it has in all.

    Half as wide as what engines take, because most of them are kept for long.
    """

    ids: NDArray[np.int32]
    total: int


class TokenCache:
    """Keeps the least recently used documents out, and at most `max_tokens` tokens in. Safe to use from threads.

    Documents are known by a hash of their text, so that the texts themselves are not kept. One that is kept whole is
    known for every room; one that was cut is known for the room that it was cut to.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._known: OrderedDict[Key, DocumentTokens] = OrderedDict()
        self._lock = Lock()
        self.tokens = 0

    def get(
        self, documents: Sequence[str], tokenize: Callable[[Sequence[str]], Sequence[DocumentTokens]], *, room: int
    ) -> list[DocumentTokens]:
        """Return the tokens of every document; those that are not known are tokenised, in one call."""
        digests = [_digest(text) for text in documents]
        found = self._look_up(digests, room)
        missing = [position for position, tokens in enumerate(found) if tokens is None]
        if missing:
            fresh = tokenize([documents[position] for position in missing])
            for position, tokens in zip(missing, fresh, strict=True):
                found[position] = tokens
            self._keep([digests[position] for position in missing], fresh, room)
        return [tokens for tokens in found if tokens is not None]

    def _look_up(self, digests: Sequence[bytes], room: int) -> list[DocumentTokens | None]:
        with self._lock:
            return [self._used((digest, None)) or self._used((digest, room)) for digest in digests]

    def _used(self, key: Key) -> DocumentTokens | None:
        tokens = self._known.get(key)
        if tokens is not None:
            self._known.move_to_end(key)
        return tokens

    def _keep(self, digests: Sequence[bytes], fresh: Sequence[DocumentTokens], room: int) -> None:
        with self._lock:
            for digest, tokens in zip(digests, fresh, strict=True):
                key = digest, None if len(tokens.ids) == tokens.total else room
                if key not in self._known:
                    self._known[key] = tokens
                    self.tokens += len(tokens.ids)
            while self.tokens > self._max_tokens:
                _, dropped = self._known.popitem(last=False)
                self.tokens -= len(dropped.ids)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
