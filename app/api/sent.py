"""What a caller sent along, as the bytes that came: numbers keep their digits, objects their order and doubled keys,
and nothing is too deep to be given back. The parts of a body are looked for only when one is wanted.
"""

from typing import Any, Final

import orjson

from app.api.json_outline import BLANKS, Outline, Positions, outline
from app.api.json_text import KEY, MOST_LEVELS
from app.steps import Steps, drained

_MEMBERS_AT_A_TIME: Final = 500


class SentBody:
    """A body that was read without an error."""

    def __init__(self, text: bytes = b"") -> None:
        self._text = text
        self._outline: Outline | None = None
        self._spans: dict[str, tuple[list[int], list[int]]] = {}
        self._latest: tuple[str, int] | None = None
        self._members: dict[str, tuple[int, int]] = {}

    @property
    def size(self) -> int:
        return len(self._text)

    def entry(self, field: str, index: int) -> orjson.Fragment:
        """An entry of a list, to be written as it came."""
        drained(self._find_entries(field))
        starts, ends = self._spans[field]
        return orjson.Fragment(self._text[starts[index] : ends[index]].strip(BLANKS))

    def member(self, field: str, index: int, name: str) -> bytes:
        """A member of an object in a list, as it came."""
        drained(self.find_members(field, index))
        start, end = self._members[name]
        return self._text[start:end].strip(BLANKS)

    def value(self, field: str, index: int, name: str, value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
        """The same, to be written as it came; texts and whole numbers of 64 bits lose nothing when they are read."""
        if value is None or isinstance(value, str | int):
            return value
        return orjson.Fragment(self.member(field, index, name))

    def find_members(self, field: str, index: int) -> Steps[None]:
        """Find all members of an object in a list, step by step; those of the latest one are kept."""
        if self._latest == (field, index):
            return
        found = yield from self._find_entries(field)
        starts, ends = self._spans[field]
        container = found.container(starts[index], ends[index], level=3)
        assert container is not None  # noqa: S101 - it was read as an object
        self._members = yield from self._spans_in(*container.members())
        self._latest = (field, index)

    def _find_entries(self, field: str) -> Steps[Outline]:
        if self._outline is None:
            most_values = 4 * len(self._text)
            self._outline = yield from outline(self._text, most_values=most_values, most_levels=MOST_LEVELS)
        found = self._outline
        if field not in self._spans:
            root = found.container(0, len(self._text), level=1)
            assert root is not None  # noqa: S101 - it was read as an object
            fields = yield from self._spans_in(*root.members())
            entries = found.container(*fields[field], level=2)
            assert entries is not None  # noqa: S101 - it was read as a list
            starts, ends = entries.members()
            self._spans[field] = starts.tolist(), ends.tolist()
        return found

    def _spans_in(self, starts: Positions, ends: Positions) -> Steps[dict[str, tuple[int, int]]]:
        """Where the value of each member is; the last one's, if there are several of a name."""
        spans: dict[str, tuple[int, int]] = {}
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True), 1):
            key = KEY.match(self._text, start, end)
            if key is not None:
                spans[orjson.loads(key[1])] = key.end(), end
            if number % _MEMBERS_AT_A_TIME == 0:
                yield
        return spans
