"""Parses JSON. A long text is parsed in pieces of a few milliseconds each, with the same result as in one call."""

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from rerankd.api.parsing.json_outline import BLANKS, Container, Outline, too_deep
from rerankd.errors import InvalidRequest, RequestTooLarge

Value = Any  # whatever JSON holds

# The deepest nesting that orjson accepts.
MAX_LEVELS: Final = 1024
# The key of a member, and the colon after it.
KEY: Final = re.compile(rb'[ \t\n\r]*("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\n\r]*:', re.DOTALL)
# A longer key is parsed together with its value.
_KEY_BYTES: Final = 1 << 12
_WINDOW_BYTES: Final = 1 << 16
_BLANKS: Final = re.compile(rb"[ \t\n\r]*+")
# The characters of a string. A match cuts neither an escape nor a pair of surrogates.
_CHARACTERS: Final = re.compile(
    rb'(?:[^"\\]++|\\[^u]|\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?![dD][89abAB])[0-9a-fA-F]{4}))++'
)
_SHOWN: Final = 40
_BOM: Final = b"\xef\xbb\xbf"
_KINDS: Final = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
# First bytes of texts that are not UTF-8, and what the sender did.
_SIGNATURES: Final = (
    (b"\x1f\x8b", "is compressed (gzip); send it as it is"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd); send it as it is"),
    (b"\xff\xfe", "is UTF-16 or UTF-32; send UTF-8"),
    (b"\xfe\xff", "is UTF-16 or UTF-32; send UTF-8"),
    (b"{\0", "is UTF-16 or UTF-32; send UTF-8"),
    (b"\0{", "is UTF-16 or UTF-32; send UTF-8"),
    (b"\0\0", "is UTF-32, or not text; send JSON in UTF-8"),
)


def kind_of(value: Value) -> str:
    """The JSON name of a value's type."""
    return _KINDS.get(type(value), "number")


def without_bom(text: bytes) -> bytes:
    """The text without UTF-8's byte order mark, which some clients send."""
    return text.removeprefix(_BOM)


def read(text: bytes | memoryview, *, start: int = 0) -> Value:
    """Parse a text in one call: 1.5 ms a megabyte. `start` is its position in the body, for messages.

    Raises:
        InvalidRequest: it is not JSON; the message says where and what must change.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit"):
            raise too_deep(MAX_LEVELS) from None
        if error.msg.startswith("number is infinity"):
            at = start + len(bytes(text).decode()[: error.pos].encode())
            raise InvalidRequest(
                f"the body has a number at byte {at} that is larger than a double can be; send it as a string"
            ) from None
        raise InvalidRequest(f"the body is not valid JSON: {_reason(bytes(text), error, start)}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most fields of the outermost object, the most bytes of a string, and how large a piece is that is parsed in
    one call.
    """

    fields: int
    text_bytes: int
    piece_bytes: int = 1 << 16
    piece_marks: int = 1 << 11


def read_in_pieces(text: bytes, outline: Outline, bounds: Bounds) -> Generator[None, None, Value]:
    """Parse a text by its outline; a generator, so that other work runs between its steps.

    Raises:
        InvalidRequest: as `read`.
        RequestTooLarge: it exceeds the bounds; what exceeds them is not built.
    """
    builder = _Builder(text, outline, bounds)
    root = outline.container(0, len(text), level=1)
    if root is None:
        builder.check_length(0, len(text))
        return read(text)
    check_field_count(len(root.commas) + 1, bounds.fields)
    for start, end in ((0, root.start), (root.end + 1, len(text))):
        builder.check_blank(start, end)
    value = _empty(text, root)
    unread = [(value, root)]
    while unread:
        target, container = unread.pop()
        yield from builder.fill(target, container, unread)
    return value


def check_field_count(fields: int, max_fields: int) -> None:
    """Check the number of fields of a body.

    Raises:
        RequestTooLarge: it has more than `max_fields`.
    """
    if fields > max_fields:
        raise RequestTooLarge(
            f"the body has {fields} fields; at most {max_fields} are allowed: leave out what is not needed"
        )


def check_encoding(text: bytes) -> None:
    """Check that bytes can be JSON in UTF-8.

    Raises:
        InvalidRequest: they are UTF-16, UTF-32 or compressed; the message says what to send instead.
    """
    for signature, problem in _SIGNATURES:
        if text.startswith(signature):
            raise InvalidRequest(f"the body is not valid JSON: it {problem}")


class _Builder:
    """Fills lists and objects with their members."""

    def __init__(self, text: bytes, outline: Outline, bounds: Bounds) -> None:
        self._text = text
        self._outline = outline
        self._bounds = bounds

    def fill(
        self, target: Value, container: Container, unread: list[tuple[Value, Container]]
    ) -> Generator[None, None, None]:
        """Parse small members in groups. Large containers are inserted empty, and appended to `unread`."""
        starts, ends = container.members()
        if self._is_empty(container):
            return
        first, bounds = 0, self._bounds
        while first < len(starts):
            yield
            start = int(starts[first])
            reach = self._outline.reach(start, max_bytes=bounds.piece_bytes, max_marks=bounds.piece_marks)
            behind = int(ends.searchsorted(reach, "right"))
            if behind > first:
                self._read_group(target, start, int(ends[behind - 1]), members=behind - first)
                first = behind
            else:
                yield from self._read_large(target, start, int(ends[first]), container.level, unread)
                first += 1

    def check_length(self, start: int, end: int) -> None:
        """Check the length of a part of the text that has no container in it.

        Raises:
            RequestTooLarge: it is too long.
        """
        if end - start > self._bounds.text_bytes:
            raise RequestTooLarge(
                f"the text at byte {start} of the body has {end - start} bytes; at most {self._bounds.text_bytes} are "
                "allowed: send the part that matters"
            )

    def check_blank(self, start: int, end: int) -> None:
        """Check that a part is blank.

        Raises:
            InvalidRequest: it has content.
        """
        if not self._is_blank(start, end):
            rest = self._text[start:end].lstrip(BLANKS)[:_SHOWN].decode(errors="replace")
            raise InvalidRequest(f"the body is not valid JSON: unexpected content at byte {start}: {rest!r}")

    def _is_empty(self, container: Container) -> bool:
        if len(container.commas):
            return False
        start, end = container.start + 1, container.end
        return self._outline.container(start, end, level=container.level + 1) is None and self._is_blank(start, end)

    def _is_blank(self, start: int, end: int) -> bool:
        self.check_length(start, end)
        windows = range(start, end, _WINDOW_BYTES)
        return not any(self._text[at : min(at + _WINDOW_BYTES, end)].translate(None, BLANKS) for at in windows)

    def _read_group(self, target: Value, start: int, end: int, *, members: int) -> None:
        piece = self._text[start:end]
        if isinstance(target, list):
            values = read(b"[%b]" % piece, start=start - 1)
            target += values
            complete = len(values) == members
        else:
            values = read(b"{%b}" % piece, start=start - 1)
            target |= values
            complete = bool(values)
        if not complete:
            raise InvalidRequest(f"the body is not valid JSON: a comma without a value at byte {end}")

    def _read_alone(self, target: Value, start: int, end: int) -> Generator[None, None, None]:
        """Parse one long text with as few copies as possible."""
        if isinstance(target, list):
            target.append((yield from _read_value(self._text, start, end, piece_bytes=self._bounds.piece_bytes)))
        elif key := KEY.match(self._text, start, min(end, start + _KEY_BYTES)):
            name = read(key[1], start=key.start(1))
            target[name] = yield from _read_value(self._text, key.end(), end, piece_bytes=self._bounds.piece_bytes)
        else:
            self._read_group(target, start, end, members=1)

    def _read_large(
        self, target: Value, start: int, end: int, level: int, unread: list[tuple[Value, Container]]
    ) -> Generator[None, None, None]:
        child = self._outline.container(start, end, level=level + 1)
        if child is None:
            self.check_length(start, end)
            yield from self._read_alone(target, start, end)
            return
        self.check_blank(child.end + 1, end)
        value = _empty(self._text, child)
        if isinstance(target, list):
            self.check_blank(start, child.start)
            target.append(value)
        else:
            self.check_length(start, child.start)
            before = self._text[start : child.start].rstrip(BLANKS)
            if not before.endswith(b":"):
                raise InvalidRequest(f"the body is not valid JSON: unexpected content before byte {child.start}")
            # parsed with a value, so that something else than a key is rejected
            target |= dict.fromkeys(read(b"{%b0}" % before, start=start - 1), value)
        unread.append((value, child))


def _read_value(text: bytes, start: int, end: int, *, piece_bytes: int) -> Generator[None, None, Value]:
    """Parse a value without a container in it. A long string is parsed in pieces, which are joined."""
    blanks = _BLANKS.match(text, start, end)
    at = blanks.end() if blanks else start
    parts: list[str] = []
    if text[at : at + 1] == b'"':
        at += 1
        while end - at > piece_bytes and (piece := _piece_of_string(text, at, piece_bytes)):
            parts.append(read(b'"%b"' % piece, start=at - 1))
            at += len(piece)
            yield
    if not parts:
        return read(memoryview(text)[start:end], start=start)
    parts.append(read(b'"%b' % text[at:end], start=at - 1))
    return "".join(parts)


def _piece_of_string(text: bytes, start: int, size: int) -> bytes:
    """Whole characters and escapes of a string. Nothing, where the string ends or is wrong: what is left is then parsed
    at once.
    """
    found = _CHARACTERS.match(text, start, start + size)
    end = found.end() if found else start
    while end > start and text[end] & 0xC0 == 0x80:  # in the middle of a character
        end -= 1
    return text[start:end]


def _empty(text: bytes, container: Container) -> list[Value] | dict[str, Value]:
    return [] if text[container.start : container.start + 1] == b"[" else {}


def _reason(text: bytes, error: orjson.JSONDecodeError, start: int) -> str:
    check_encoding(text)
    try:
        decoded = text.decode()
    except UnicodeDecodeError as undecodable:
        at = undecodable.start
        place = f"byte {start + at} is 0x{text[at]:02x}{_after(text[:at])}"
        return f"{place}, which is not UTF-8; send UTF-8"
    if not text.strip(BLANKS):
        return "it is empty; send an object with query and documents"
    before = decoded[: error.pos].encode()
    return f"{error.msg} at byte {start + len(before)}{_after(before)}"


def _after(before: bytes) -> str:
    shown = before[-_SHOWN:].decode(errors="replace")
    return f", after {shown!r}" if shown else ""
