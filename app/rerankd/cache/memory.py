"""The default cache: in this process, evicts the least recently used entry first."""

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import SplitResult

from rerankd.cache.keys import KEY_BYTES
from rerankd.cache.lru import ENTRY_BYTES, Lru
from rerankd.cache.url import check_no_server, read_parameters

DEFAULT_MAX_MB: Final = 128
# What Python adds to the bytes of a key and of a value.
_OBJECTS_BYTES: Final = 2 * 48
# What `max_entries` counts: an entry as small as a pair's score.
_SMALL_BYTES: Final = ENTRY_BYTES + _OBJECTS_BYTES + KEY_BYTES + 16


class MemoryCache:
    """Memory for `max_entries` small entries, of 384 bytes in all; a larger one takes as much as some of them. An owner
    cannot evict the entries of others that hold less.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._entries: Lru[bytes, bytes] = Lru(max_size=max_entries * _SMALL_BYTES, size_of=_size)

    @classmethod
    def from_url(cls, url: SplitResult) -> "MemoryCache":
        """Build from `memory://?max_mb=N` or `memory://?max_entries=N`; of both the smaller holds."""
        check_no_server(url)
        given = read_parameters(url, {"max_mb": 0, "max_entries": 0})
        if not given["max_entries"]:
            given["max_mb"] = given["max_mb"] or DEFAULT_MAX_MB
        limits = (given["max_mb"] * 2**20 // _SMALL_BYTES, given["max_entries"])
        return cls(max_entries=min(limit for limit in limits if limit))

    @staticmethod
    def part_of_url(url: SplitResult, *, processes: int) -> str:
        """The URL of the cache of each of several processes, which together hold as much."""
        given = read_parameters(url, {"max_mb": 0, "max_entries": 0})
        if not given["max_entries"]:
            given["max_mb"] = given["max_mb"] or DEFAULT_MAX_MB
        parts = [f"{name}={max(1, limit // processes)}" for name, limit in given.items() if limit]
        return f"memory://?{'&'.join(parts)}"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that are taken."""
        return self._entries.size

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._entries.get_many(keys)

    async def put_many(self, entries: Mapping[bytes, bytes], *, owner: str = "") -> None:
        for key, value in entries.items():
            self._entries.put(key, value, owner=owner)

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        self._entries.clear()


def _size(key: bytes, value: bytes) -> int:
    return ENTRY_BYTES + _OBJECTS_BYTES + len(key) + len(value)
