"""Signs the entries of a cache that others can write to, and hides texts from those that can read it.

Names and entries are hashed with a secret (keyed BLAKE2b, RFC 7693). An entry is signed together with its name, so that
it holds nowhere else.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from rerankd.cache.base import Cache
from rerankd.cache.keys import KEY_BYTES
from rerankd.telemetry.observer import Observer

_SIGNATURE_BYTES: Final = 16


class SignedCache:
    """Wraps a cache. An entry whose signature is wrong is a miss, and is counted."""

    def __init__(self, inner: Cache, *, secret: str, observer: Observer) -> None:
        self._inner = inner
        # As long as a key may be at most.
        self._secret = blake2b(secret.encode(), digest_size=32).digest()
        self._observer = observer

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look keys up.

        Raises:
            CacheUnavailable: what the inner cache raises.
        """
        names = [self._name(key) for key in keys]
        stored = await self._inner.get_many(names)
        return [self._verified(name, value) for name, value in zip(names, stored, strict=True)]

    async def put_many(self, entries: Mapping[bytes, bytes], *, owner: str = "") -> None:
        """Store entries.

        Raises:
            CacheUnavailable: what the inner cache raises.
        """
        named = {self._name(key): value for key, value in entries.items()}
        signed = {name: value + self._signature(name, value) for name, value in named.items()}
        await self._inner.put_many(signed, owner=owner)

    async def check(self) -> None:
        """Ask the inner cache whether it can be used.

        Raises:
            ConfigError: it never can.
        """
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()

    def _name(self, key: bytes) -> bytes:
        return blake2b(key, digest_size=KEY_BYTES, key=self._secret, person=b"name").digest()

    def _signature(self, name: bytes, value: bytes) -> bytes:
        return blake2b(name + value, digest_size=_SIGNATURE_BYTES, key=self._secret, person=b"entry").digest()

    def _verified(self, name: bytes, stored: bytes | None) -> bytes | None:
        if stored is None:
            return None
        value, signature = stored[:-_SIGNATURE_BYTES], stored[-_SIGNATURE_BYTES:]
        if compare_digest(signature, self._signature(name, value)):
            return value
        self._observer.cache_failed(operation="verify")
        return None
