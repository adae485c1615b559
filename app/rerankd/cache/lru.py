"""The one map behind all caches in this process: bounded in bytes, least recently used out first, shared by owners."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# What the maps take for an entry beside its key and value, what the allocator loses included: 120 bytes when they are
# full, twice as much just after they have grown.
ENTRY_BYTES: Final = 256


class _Entries(OrderedDict[Key, Value]):
    """One owner's entries, the one used longest ago first, and what they take."""

    size = 0


class Lru(Generic[Key, Value]):
    """Holds at most `max_size`, as `size_of` tells the size of a key and its value; the same entry must always have the
    same size. Not safe to use from threads.

    An entry belongs to the owner that put it in, and all can read it. A full map evicts from the owner that holds most,
    the least recently used entry first. So an owner cannot evict the entries of others that hold less.
    """

    def __init__(self, *, max_size: int, size_of: Callable[[Key, Value], int]) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._owners: dict[str, _Entries[Key, Value]] = {}
        self._holders: dict[Key, _Entries[Key, Value]] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._holders)

    def get(self, key: Key) -> Value | None:
        """The value, which counts as used; None where there is none."""
        entries = self._holders.get(key)
        if entries is None:
            return None
        entries.move_to_end(key)
        return entries[key]

    def get_many(self, keys: Iterable[Key]) -> list[Value | None]:
        """As `get`, for many keys."""
        holder_of = self._holders.get
        found: list[Value | None] = []
        for key in keys:
            entries = holder_of(key)
            if entries is None:
                found.append(None)
            else:
                entries.move_to_end(key)
                found.append(entries[key])
        return found

    def put(self, key: Key, value: Value, *, owner: str = "") -> None:
        """Keep a value in the place of an older one. It stays with the owner that it has."""
        entries = self._holders.get(key)
        change = self._size_of(key, value)
        if entries is None:
            entries = self._owners.get(owner)
            if entries is None:
                entries = self._owners[owner] = _Entries()
            self._holders[key] = entries
        else:
            change -= self._size_of(key, entries[key])
            entries.move_to_end(key)
        entries[key] = value
        entries.size += change
        self.size += change
        while self.size > self._max_size:
            self._drop_one()

    def clear(self) -> None:
        """Drop everything."""
        self._owners.clear()
        self._holders.clear()
        self.size = 0

    def _drop_one(self) -> None:
        owner, entries = max(self._owners.items(), key=lambda item: item[1].size)
        key, value = entries.popitem(last=False)
        size = self._size_of(key, value)
        del self._holders[key]
        entries.size -= size
        self.size -= size
        if not entries:
            del self._owners[owner]
