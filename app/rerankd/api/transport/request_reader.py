"""Reads the requests of one connection from its bytes, in order, and no further than the caller asks for.

Knows no socket and no clock. httptools (llhttp, strict) parses and frames. This module adds what it lacks, without a
second parser. Reading can stop after each request, because the parser gets its bytes in slices that end where a head or
a body can end. An offer to upgrade is ignored. Heads, and what surrounds the chunks of a body, are bounded.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import httptools

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_TARGET_BYTES: Final = 8 * 1024
MAX_HEADERS: Final = 100
_SLICE_BYTES: Final = 16 * 1024
# Chunks may hold one blank line after another. Parsing a few requests too early is cheaper than a slice for each line.
_CHUNKED_SLICE_BYTES: Final = 512
# Sizes, extensions and trailers of a chunked body: at most this many bytes, and as many more for each byte of content.
_FRAMING_BYTES: Final = 64 * 1024
_FRAMING_PER_BYTE: Final = 16
_BLANK_LINE: Final = b"\r\n\r\n"
_HTTP_LINE: Final = re.compile(rb"^([A-Z-]+) +([^ \r\n]+) +HTTP/", re.MULTILINE)
_FRAMING_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    method: str
    version: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    keep_alive: bool
    expects_continue: bool


@dataclass(frozen=True, slots=True)
class EndOfRequest:
    """The body, which may be empty, is complete."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request cannot be read: the connection answers this and closes."""

    status: int
    message: str


Event = Head | bytes | EndOfRequest | Refusal
_END: Final = EndOfRequest()


class RequestReader:
    """`feed` takes bytes; `next_event` parses as few of them as it can. Nothing is read after a `Refusal`."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0
        self._events: deque[Event] = deque()
        self._refused = False
        self._replaying = False
        self._slice = memoryview(b"")
        self._head = bytearray()  # all slices in which there is something of the head that is being read
        self._start_message()
        self._parser = self._new_parser()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have arrived and are not parsed yet."""
        return len(self._bytes) - self._at

    @property
    def idle(self) -> bool:
        """Whether nothing of the next request has arrived."""
        return self._in_head and not self._head_bytes and not self.waiting_bytes and not self._events

    def feed(self, data: bytes) -> None:
        if not self._refused:
            self._bytes = self._bytes[self._at :] + data if self.waiting_bytes else data
            self._at = 0

    def next_event(self) -> Event | None:
        """The next event, after parsing at most one slice; None if that completed nothing."""
        if not self._events and self.waiting_bytes:
            self._parse_slice()
        return self._events.popleft() if self._events else None

    def _parse_slice(self) -> None:
        start, end = self._at, self._end_of_slice()
        self._at = end
        if self._in_head:
            self._head_bytes += end - start
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
                return
        elif self._body_left is None:
            self._framing_bytes += end - start
        self._slice = memoryview(self._bytes)[start:end]
        if self._head:
            self._head += self._slice
        try:
            self._parser.feed_data(self._slice)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._refused:
                self._at = start + upgrade.args[0]
                self._ignore_upgrade()
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is not a valid HTTP/1.1 request: {_cause(error)}")
        else:
            self._check_framing()

    def _end_of_slice(self) -> int:
        """Where the next head or body may end. Bytes of a slice beyond that are only parsed earlier than necessary."""
        if self._body_left:
            return min(self._at + self._body_left, len(self._bytes))
        last = min(self._at + _SLICE_BYTES, len(self._bytes))
        first = self._at if self._in_head else self._at + _CHUNKED_SLICE_BYTES
        blank = self._bytes.find(_BLANK_LINE, first, last)
        return last if blank < 0 else blank + len(_BLANK_LINE)

    def _check_framing(self) -> None:
        self._flush_content()
        if self._framing_bytes > _FRAMING_BYTES + _FRAMING_PER_BYTE * self._content_bytes:
            self._refuse(400, "the body's chunks have more extensions, trailers or sizes than content")

    def _refuse(self, status: int, message: str) -> None:
        if self._refused:
            return
        self._refused = True
        self._bytes, self._at = b"", 0
        self._content.clear()
        self._events.append(Refusal(status, message))

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # Bytes after a request with `Connection: close` are discarded; they are not an error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _ignore_upgrade(self) -> None:
        """The parser takes what follows such a head for another protocol. A new parser, which gets the same head
        without the offer, frames the body as the request says.
        """
        head = [b"%b / HTTP/%b\r\n" % (self._parser.get_method(), self._parser.get_http_version().encode())]
        head += [b"%b: %b\r\n" % header for header in self._headers if header[0] in _FRAMING_HEADERS]
        self._parser = self._new_parser()
        self._replaying = True
        self._parser.feed_data(b"".join([*head, b"\r\n"]))
        self._replaying = False

    # Called by the parser.

    def _start_message(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._headers_seen = 0
        self._in_head = True
        self._head_bytes = 0
        self._body_left: int | None = 0
        self._content: list[bytes] = []
        self._content_bytes = 0
        self._framing_bytes = 0

    def on_message_begin(self) -> None:
        if not self._replaying:
            self._head = bytearray(self._slice)

    def on_url(self, part: bytes) -> None:
        if not self._replaying:
            self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Strip white space around a value (RFC 9110, 5.5); the parser leaves what follows the value."""
        # Trailers are ignored.
        if self._in_head and not self._replaying:
            self._headers_seen += 1
            if self._headers_seen <= MAX_HEADERS:
                name = name.lower()
                # The parser takes a tab after a coding as a part of it, and both must frame the body alike.
                around = b" " if name == b"transfer-encoding" else b" \t"
                self._headers.append((name, value.strip(around)))

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        self._in_head = False
        head, self._head = bytes(self._head), bytearray()
        method, version = self._parser.get_method().decode("ascii"), self._parser.get_http_version()
        for refusal in self._objections(method, version, head):
            self._refuse(refusal.status, refusal.message)
            return
        try:
            url = httptools.parse_url(self._target)
        except httptools.HttpParserInvalidURLError:
            self._refuse(400, "the request's target is not a valid URL; send a path, such as /rerank")
            return
        values = dict(self._headers)
        length = values.get(b"content-length")
        self._body_left = None if b"transfer-encoding" in values else int(length) if length else 0
        raw_path = url.path or b"/"
        self._events.append(
            Head(
                method=method,
                version=version,
                path=unquote(raw_path.decode("ascii")),
                raw_path=raw_path,
                query=url.query or b"",
                headers=self._headers,
                keep_alive=version == "1.1" and self._parser.should_keep_alive(),
                expects_continue=version == "1.1" and values.get(b"expect", b"").lower() == b"100-continue",
            )
        )

    def on_body(self, content: bytes) -> None:
        if not self._refused:
            self._content.append(content)
            self._content_bytes += len(content)
            if self._body_left:
                self._body_left -= len(content)

    def on_message_complete(self) -> None:
        # At an upgrade the parser calls this right after the head, with the body still to come.
        if self._refused or (self._parser.should_upgrade() and not self._replaying):
            return
        self._flush_content()
        self._events.append(_END)
        self._start_message()

    def _flush_content(self) -> None:
        if self._content:
            self._events.append(b"".join(self._content))
            self._content = []

    def _objections(self, method: str, version: str, head: bytes) -> Iterator[Refusal]:
        """What the parser accepts and is rejected here: two readers could frame or route it differently."""
        if version not in {"1.0", "1.1"}:
            yield Refusal(505, f"HTTP/{version} is not supported; use HTTP/1.1")
        elif not self._is_http(method, head):
            yield Refusal(505, "only HTTP is supported; use HTTP/1.1")
        if method == "CONNECT":
            yield Refusal(501, "CONNECT is not supported: this is no proxy")
        if self._headers_seen > MAX_HEADERS:
            yield Refusal(431, f"the request has {self._headers_seen} headers; at most {MAX_HEADERS} are allowed")
        if len(self._target) > MAX_TARGET_BYTES:
            yield Refusal(414, f"the request's target has more than {MAX_TARGET_BYTES} bytes")
        if b"#" in self._target:
            yield Refusal(400, "the request's target has a fragment (#...)")
        names = [name for name, _ in self._headers]
        yield from self._objections_to_coding(names, version)
        hosts = names.count(b"host")
        if hosts > 1 or (hosts < 1 and version == "1.1"):
            yield Refusal(400, f"the request has {hosts} Host headers instead of one")

    def _objections_to_coding(self, names: list[bytes], version: str) -> Iterator[Refusal]:
        if b"transfer-encoding" in names:
            if [value.lower() for name, value in self._headers if name == b"transfer-encoding"] != [b"chunked"]:
                yield Refusal(501, "of all transfer codings only `Transfer-Encoding: chunked` is supported")
            if version == "1.0":
                yield Refusal(400, "HTTP/1.0 has no Transfer-Encoding")

    def _is_http(self, method: str, head: bytes) -> bool:
        """The parser also accepts RTSP and ICE, and does not say which protocol it has read."""
        return (method.encode(), self._target) in _HTTP_LINE.findall(head)


def _cause(error: httptools.HttpParserError) -> str:
    text = str(error)
    # The parser's words for the preface of HTTP/2.
    return "HTTP/2 is not supported; use HTTP/1.1" if "PRI" in text else text
