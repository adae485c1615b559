"""What a caller sent along, as the bytes that came: numbers keep their digits, objects their order and doubled keys,
and nothing is too deep to be given back. The parts of a body are looked for only when one is wanted.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

import orjson

from app.api.json_outline import BLANKS, Container, Outline, outline
from app.api.json_text import MOST_LEVELS

_KEY: Final = re.compile(rb'[ \t\n\r]*("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\n\r]*:', re.DOTALL)


class SentBody:
    """A body that was read without an error."""

    def __init__(self, text: bytes = b"") -> None:
        self._text = text
        self._spans: dict[str, tuple[list[int], list[int]]] = {}

    @property
    def size(self) -> int:
        return len(self._text)

    def entry(self, field: str, index: int) -> orjson.Fragment:
        """An entry of a list, to be written as it came."""
        starts, ends = self._entries(field)
        return orjson.Fragment(self._text[starts[index] : ends[index]].strip(BLANKS))

    def member(self, field: str, index: int, name: str) -> bytes:
        """A member of an object in a list, as it came."""
        starts, ends = self._entries(field)
        container = self._outline.container(starts[index], ends[index], level=3)
        assert container is not None  # noqa: S101 - it was read as an object
        start, end = self._find(container, name)
        return self._text[start:end].strip(BLANKS)

    def value(self, field: str, index: int, name: str, value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
        """The same, to be written as it came; texts and whole numbers of 64 bits lose nothing when they are read."""
        if value is None or isinstance(value, str | int):
            return value
        return orjson.Fragment(self.member(field, index, name))

    def _entries(self, field: str) -> tuple[list[int], list[int]]:
        if field not in self._spans:
            root = self._outline.container(0, len(self._text), level=1)
            assert root is not None  # noqa: S101 - it was read as an object
            entries = self._outline.container(*self._find(root, field), level=2)
            assert entries is not None  # noqa: S101 - it was read as a list
            starts, ends = entries.members()
            self._spans[field] = starts.tolist(), ends.tolist()
        return self._spans[field]

    def _find(self, container: Container, name: str) -> tuple[int, int]:
        """Where the value of a member is; the last one's, if there are several."""
        starts, ends = container.members()
        for start, end in zip(reversed(starts.tolist()), reversed(ends.tolist()), strict=True):
            key = _KEY.match(self._text, start, end)
            if key is not None and _is(key[1], name):
                return key.end(), end
        raise KeyError(name)

    @cached_property
    def _outline(self) -> Outline:
        return _drained(outline(self._text, most_values=4 * len(self._text), most_levels=MOST_LEVELS))


def _is(key: bytes, name: str) -> bool:
    return bool(orjson.loads(key) == name) if b"\\" in key else key[1:-1] == name.encode()


def _drained(steps: Iterator[None]) -> Outline:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Outline = end.value
            return found
