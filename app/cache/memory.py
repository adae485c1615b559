"""The default cache: least recently used, in this process."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult

from app.cache.url import check_no_server, read_parameters

DEFAULT_MAX_ENTRIES = 500_000


class MemoryCache:
    """At most `max_entries` scores, of about 200 bytes each."""

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    @classmethod
    def from_url(cls, url: SplitResult) -> "MemoryCache":
        """Build from `memory://?max_entries=N`."""
        check_no_server(url)
        parameters = read_parameters(url, {"max_entries": DEFAULT_MAX_ENTRIES})
        return cls(max_entries=parameters["max_entries"])

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [self._entries.get(key) for key in keys]
        for key, value in zip(keys, found, strict=True):
            if value is not None:
                self._entries.move_to_end(key)
        return found

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        for key, value in entries.items():
            self._entries[key] = value
            self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        self._entries.clear()
