"""Writes the head of a response, and checks the body against the length that it promises."""

import http
import re
from collections.abc import Iterable
from typing import Final

from rerankd.api.transport.request_reader import Headers

_BODILESS: Final = frozenset({204, 304})
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in http.HTTPStatus}
_BAD_NAME: Final = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class ResponseHead:
    """`begin` takes what the application sends first; the head is written together with the first part of the body."""

    def __init__(self, default_headers: Headers) -> None:
        self.keep_alive = True
        self._lines: list[bytes] = []
        self._written = False
        self._bytes_left: int | None = None
        self._bodiless = False
        self._default_headers = default_headers

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, bodiless: bool) -> None:
        self._lines.append(_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status)
        for name, value in (*self._default_headers, *headers):
            if _BAD_NAME.search(name) or _BAD_VALUE.search(value):
                raise RuntimeError(f"header {name!r} cannot be sent")
            lower = name.lower()
            if lower == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            if lower == b"content-length":
                self._bytes_left = int(value)
            self._lines.append(b"%b: %b\r\n" % (lower, value))
        self._bodiless = bodiless or status in _BODILESS

    def finish(self, whole_bytes: int | None, *, keep_alive: bool) -> bytes:
        """The head, the first time; then nothing. `whole_bytes` is the size of a body that is sent in one part."""
        if self._written:
            return b""
        self._written = True
        if self._bytes_left is None and not self._bodiless:
            if whole_bytes is None:
                self.keep_alive = False  # the body ends with the connection
            else:
                self._bytes_left = whole_bytes
                self._lines.append(b"content-length: %d\r\n" % whole_bytes)
        if not (keep_alive and self.keep_alive):
            self._lines.append(b"connection: close\r\n")
        return b"".join([*self._lines, b"\r\n"])

    def content(self, body: bytes, *, last: bool) -> bytes:
        """The bytes to send of a part of the body: none for HEAD, 204 and 304."""
        if self._bodiless:
            return b""
        if self._bytes_left is not None:
            self._bytes_left -= len(body)
            if self._bytes_left < 0 or (last and self._bytes_left):
                raise RuntimeError("the answer is not as long as its Content-Length says")
        return body
