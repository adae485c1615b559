"""Locates the parts of a JSON text in linear time, before any value is built.

An outline holds the positions and depths of brackets, braces and commas outside of strings. With it values are counted
before they are built, a long text is parsed in pieces, and a part can be returned as the bytes that arrived. It does
not validate: the parser that reads the parts rejects what is not JSON.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rerankd.errors import InvalidRequest, RequestTooLarge

Positions = NDArray[np.signedinteger[Any]]
Levels = NDArray[np.int16]

_QUOTE: Final = ord('"')
_MARKS: Final = np.zeros(256, dtype=np.bool_)
_MARKS[list(b'"[]{},')] = True
_CLOSING, _COMMA, _OPENING = -1, 0, 1
# By a mark's character: how much it changes the depth.
_DEPTH_CHANGE: Final = np.zeros(256, dtype=np.int8)
_DEPTH_CHANGE[list(b"[{")] = _OPENING
_DEPTH_CHANGE[list(b"]}")] = _CLOSING
# Memory of a value: an object takes several times as much as a list, a text or a number.
_WEIGHT: Final = np.zeros(256, dtype=np.int64)
_WEIGHT[list(b",[")] = 1
_WEIGHT[ord("{")] = 4
BLANKS: Final = b" \t\n\r"


@dataclass(frozen=True, slots=True)
class Container:
    """A list or an object: its brackets are at `start` and `end`, and those of its members one level deeper."""

    start: int
    end: int
    level: int
    commas: Positions

    def members(self) -> tuple[Positions, Positions]:
        """Where the members begin and end, with the blanks around them. A single member may be empty."""
        return np.append(self.start, self.commas) + 1, np.append(self.commas, self.end)


def _index(positions: Positions, position: int) -> int:
    """How many positions are below one. Its type is converted so that NumPy does not copy all of them."""
    return int(positions.searchsorted(positions.dtype.type(position)))


class _Marks:
    """The marks of one kind, grouped by level."""

    def __init__(self, positions: Positions, levels: Levels) -> None:
        order = np.argsort(levels, kind="stable")
        self._positions = positions[order]
        self._starts = np.searchsorted(levels[order], np.arange(int(levels.max(initial=0)) + 2))

    def between(self, start: int, end: int, *, level: int) -> Positions:
        """The marks of a level from `start` up to `end`, in order."""
        if level + 1 >= len(self._starts):
            return self._positions[:0]
        marks = self._positions[self._starts[level] : self._starts[level + 1]]
        return marks[_index(marks, start) : _index(marks, end)]


class Outline:
    """The outline of one text. Its outermost container has level 1."""

    def __init__(self, text: bytes, positions: Positions, closings: _Marks, commas: _Marks, openings: _Marks) -> None:
        self._text = text
        self._positions = positions
        self._closings = closings
        self._commas = commas
        self._openings = openings

    def reach(self, start: int, *, max_bytes: int, max_marks: int) -> int:
        """The end of the piece from `start` that has at most `max_bytes` bytes and `max_marks` marks."""
        last = _index(self._positions, start) + max_marks
        reach = start + max_bytes
        return reach if last >= len(self._positions) else min(reach, int(self._positions[last]))

    def container(self, start: int, end: int, *, level: int) -> Container | None:
        """The first container of a level that opens between two positions; None if there is none.

        Raises:
            InvalidRequest: it is not closed, or closed by the wrong kind of bracket.
        """
        openings = self._openings.between(start, end, level=level)
        if not len(openings):
            return None
        opening = int(openings[0])
        closings = self._closings.between(opening, end, level=level)
        # "[" and "]", and "{" and "}", are two characters apart
        if not len(closings) or self._text[opening] + 2 != self._text[closings[0]]:
            raise InvalidRequest(f"the body is not valid JSON: the bracket at byte {opening} is not closed")
        closing = int(closings[0])
        return Container(opening, closing, level, self._commas.between(opening, closing, level=level))


def outline(
    text: bytes, *, max_values: int, max_levels: int, window_bytes: int = 1 << 16
) -> Generator[None, None, Outline]:
    """The outline of a text; a generator, so that other work runs between its steps.

    Raises:
        RequestTooLarge: it holds more values. An object counts as four.
        InvalidRequest: it is nested more deeply, or has a comma or bracket outside of any container.
    """
    scan = _Scan(len(text), max_values=max_values, max_levels=max_levels)
    for start in range(0, len(text), window_bytes):
        scan.read(text[start : start + window_bytes], start)
        yield
    positions, levels = scan.marks()
    changes = _DEPTH_CHANGE[np.frombuffer(text, dtype=np.uint8)[positions]]
    sorted_marks = []
    for change in _CLOSING, _COMMA, _OPENING:
        yield
        sorted_marks.append(_Marks(positions[changes == change], levels[changes == change]))
    return Outline(text, positions, *sorted_marks)


def too_deep(max_levels: int) -> InvalidRequest:
    return InvalidRequest(f"the body is nested more than {max_levels} levels deep; flatten it")


class _Scan:
    """Reads a text window by window."""

    def __init__(self, size: int, *, max_values: int, max_levels: int) -> None:
        self._positions_type = np.min_scalar_type(-size - 1)
        self._max_values = max_values
        self._max_levels = max_levels
        self._values = 0
        self._level = 0
        self._in_string = False
        self._escaped = False
        self._positions: list[Positions] = []
        self._levels: list[Levels] = []

    def read(self, window: bytes, start: int) -> None:
        characters = np.frombuffer(self._without_escapes(window), dtype=np.uint8)
        positions = np.flatnonzero(_MARKS[characters])
        kinds = characters[positions]
        quotes = kinds == _QUOTE
        inside = (np.cumsum(quotes) + self._in_string) & 1
        self._in_string ^= bool(np.count_nonzero(quotes) & 1)
        outside = ~quotes & (inside == 0)
        positions, kinds = positions[outside], kinds[outside]
        if not len(positions):
            return
        self._count(kinds)
        changes = _DEPTH_CHANGE[kinds]
        levels = np.cumsum(changes, dtype=np.int64) + self._level
        self._level = int(levels[-1])
        levels += changes == _CLOSING  # a closing bracket has the level of its opening one
        self._check(levels)
        self._positions.append((positions + start).astype(self._positions_type))
        self._levels.append(levels.astype(np.int16))

    def marks(self) -> tuple[Positions, Levels]:
        """The positions of all marks, and their levels."""
        if not self._positions:
            return np.empty(0, dtype=self._positions_type), np.empty(0, dtype=np.int16)
        positions, levels = np.concatenate(self._positions), np.concatenate(self._levels)
        self._positions.clear()
        self._levels.clear()
        return positions, levels

    def _without_escapes(self, window: bytes) -> bytes:
        """The window with escaped quotes and backslashes replaced, at the same length."""
        if self._escaped:
            window = b"_" + window[1:]
        if b"\\" in window:
            window = window.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        self._escaped = window.endswith(b"\\")
        return window

    def _count(self, kinds: NDArray[np.uint8]) -> None:
        self._values += int(_WEIGHT[kinds].sum())
        if self._values > self._max_values:
            raise RequestTooLarge(
                f"the body has more than {self._max_values} JSON values (an object counts as four); "
                "send fewer documents, or fewer fields with them"
            )

    def _check(self, levels: NDArray[np.int64]) -> None:
        if int(levels.max()) > self._max_levels:
            raise too_deep(self._max_levels)
        if int(levels.min()) < 1:
            raise InvalidRequest("the body is not valid JSON: there is a comma or bracket outside of the object")
