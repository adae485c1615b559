"""Parts of a request body as the bytes that arrived, to send back: numbers keep their digits, objects keep their order
and duplicate keys, and any depth is possible. The parts are located only when one is needed.
"""

from typing import Any, Final

import orjson

from rerankd.api.parsing.json_outline import BLANKS, Outline, Positions, outline
from rerankd.api.parsing.json_text import KEY, MAX_LEVELS
from rerankd.concurrency.slices import Sliced, run_to_end

_MEMBERS_PER_STEP: Final = 500
# A span is one integer, its start above its end: an object may have hundreds of thousands of members.
_END_BITS: Final = 40
_END: Final = (1 << _END_BITS) - 1


class RawBody:
    """A body that was parsed without an error."""

    def __init__(self, text: bytes = b"") -> None:
        self._text = text
        self._outline: Outline | None = None
        self._spans: dict[str, tuple[list[int], list[int]]] = {}
        self._latest: tuple[str, int] | None = None
        self._members: dict[str, int] = {}

    @property
    def size(self) -> int:
        return len(self._text)

    def field(self, name: str) -> bytes:
        """The value of a field, as it arrived."""
        return self._text[run_to_end(self._find_field(name))].strip(BLANKS)

    def entry(self, field: str, index: int) -> orjson.Fragment:
        """An entry of a list, to be written as it arrived."""
        run_to_end(self._find_entries(field))
        starts, ends = self._spans[field]
        return orjson.Fragment(self._text[starts[index] : ends[index]].strip(BLANKS))

    def member(self, field: str, index: int, name: str) -> bytes:
        """A member of an object in a list, as it arrived."""
        run_to_end(self.find_members(field, index))
        return self._text[_slice(self._members[name])].strip(BLANKS)

    def value(self, field: str, index: int, name: str, value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
        """The same, to be written as it arrived. Parsing texts and 64-bit integers loses nothing, so those are used."""
        if value is None or isinstance(value, str | int):
            return value
        return orjson.Fragment(self.member(field, index, name))

    def find_members(self, field: str, index: int) -> Sliced[None]:
        """Locate all members of an object in a list; those of the latest object are kept."""
        if self._latest == (field, index):
            return
        found = yield from self._find_entries(field)
        starts, ends = self._spans[field]
        container = found.container(starts[index], ends[index], level=3)
        assert container is not None  # noqa: S101 - it was read as an object
        self._members = yield from self._spans_in(*container.members())
        self._latest = (field, index)

    def _find_entries(self, field: str) -> Sliced[Outline]:
        found = yield from self._outlined()
        if field not in self._spans:
            span = yield from self._find_field(field)
            entries = found.container(span.start, span.stop, level=2)
            assert entries is not None  # noqa: S101 - it was read as a list
            starts, ends = entries.members()
            self._spans[field] = starts.tolist(), ends.tolist()
        return found

    def _find_field(self, name: str) -> Sliced[slice]:
        found = yield from self._outlined()
        root = found.container(0, len(self._text), level=1)
        assert root is not None  # noqa: S101 - it was read as an object
        fields = yield from self._spans_in(*root.members())
        return _slice(fields[name])

    def _outlined(self) -> Sliced[Outline]:
        if self._outline is None:
            max_values = 4 * len(self._text)
            self._outline = yield from outline(self._text, max_values=max_values, max_levels=MAX_LEVELS)
        return self._outline

    def _spans_in(self, starts: Positions, ends: Positions) -> Sliced[dict[str, int]]:
        """Where the value of each member is. Of members with the same name, the last one counts."""
        spans: dict[str, int] = {}
        for first in range(0, len(starts), _MEMBERS_PER_STEP):
            chunk = slice(first, first + _MEMBERS_PER_STEP)
            for start, end in zip(starts[chunk].tolist(), ends[chunk].tolist(), strict=True):
                key = KEY.match(self._text, start, end)
                if key is not None:
                    spans[orjson.loads(key[1])] = key.end() << _END_BITS | end
            yield
        return spans


def _slice(span: int) -> slice:
    return slice(span >> _END_BITS, span & _END)
