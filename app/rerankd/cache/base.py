"""What a cache is: bytes by key, many at a time. Only the stage that wrote them knows what they mean."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Cache(Protocol):
    """Every method may raise `CacheUnavailable`; none takes longer than the cache's own timeout."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look keys up in one round trip; None where a key is unknown."""

    async def put_many(self, entries: Mapping[bytes, bytes], *, owner: str = "") -> None:
        """Store entries for an owner (an API key's name), among which a cache in this process divides its memory."""

    async def check(self) -> None:
        """Ask whether the cache can ever be used.

        Raises:
            ConfigError: it cannot; one that is only away now may come back.
        """

    async def close(self) -> None: ...
