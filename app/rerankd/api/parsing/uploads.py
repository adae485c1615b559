"""Reads a file out of a `multipart/form-data` body while it arrives; nothing of the file is kept in memory."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from python_multipart.exceptions import FormParserError, MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from rerankd.errors import InvalidRequest

_MOST_PARTS: Final = 16
_MOST_FIELD_BYTES: Final = 4096
_LONGEST_NAME: Final = 255


class FormReader:
    """The parts of a body: the file `file`, and short fields beside it."""

    def __init__(self, request: Request, *, chunk_bytes: int) -> None:
        """Begin to read.

        Raises:
            InvalidRequest: the body is no form.
        """
        self._request = request
        self._chunk_bytes = chunk_bytes
        kind, options = parse_options_header(request.headers.get("content-type"))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest("send the file as multipart/form-data, with the fields file and purpose")
        try:
            self._form = _Form(boundary)
        except FormParserError:
            raise InvalidRequest("the form's boundary is too long; let your client choose one") from None

    async def file(self) -> AsyncIterator[bytes]:
        """The bytes of the file, in chunks of one size but for the last.

        Raises:
            InvalidRequest: the form is malformed, or has other parts than these.
        """
        arrived, waiting, form = bytearray(), bytearray(), self._form
        async for part in self._request.stream():
            arrived += part
            if len(arrived) >= self._chunk_bytes:
                waiting += await asyncio.to_thread(form.feed, bytes(arrived))
                arrived.clear()
                while len(waiting) >= self._chunk_bytes:
                    yield bytes(waiting[: self._chunk_bytes])
                    del waiting[: self._chunk_bytes]
        waiting += await asyncio.to_thread(form.feed, bytes(arrived), last=True)
        while waiting:
            yield bytes(waiting[: self._chunk_bytes])
            del waiting[: self._chunk_bytes]

    def field(self, name: str) -> str:
        """A field's value, once the file was read; empty: there is none."""
        return bytes(self._form.fields.get(name, b"")).decode("utf-8", "replace")

    @property
    def file_name(self) -> str:
        """What the client calls the file.

        Raises:
            InvalidRequest: there was no file.
        """
        if self._form.file_name is None:
            raise InvalidRequest("the form has no part `file`; send the JSONL file as `file`")
        return self._form.file_name


class _Form:
    """A form that is parsed as its bytes come."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, bytearray] = {}
        self.file_name: str | None = None
        self._found = bytearray()
        self._parts = 0
        self._header: tuple[bytearray, bytearray] = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._into: bytearray | None = None
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_data,
                "on_part_data": self._take,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """What these bytes hold of the file.

        Raises:
            InvalidRequest: see `FormReader.file`.
        """
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise InvalidRequest(f"the form is malformed: {error!s:.100}") from None
        if last and not self._complete:
            raise InvalidRequest("the form ends before its last boundary")
        found, self._found = bytes(self._found), bytearray()
        return found

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidRequest(f"a form has at most {_MOST_PARTS} parts; send file and purpose")
        self._headers, self._header = {}, (bytearray(), bytearray())

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = bytearray(), bytearray()

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != "file":
            self._into = self.fields.setdefault(name, bytearray())
            return
        if self.file_name is not None:
            raise InvalidRequest("the form has two parts `file`; send one file at a time")
        self.file_name = options.get(b"filename", b"file").decode("utf-8", "replace")[:_LONGEST_NAME]
        self._into = None

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._into is None:
            self._found += data[start:end]
            return
        self._into += data[start:end]
        if len(self._into) > _MOST_FIELD_BYTES:
            raise InvalidRequest(
                f"a field of the form has more than {_MOST_FIELD_BYTES} bytes; send texts in the part `file`"
            )

    def _end(self) -> None:
        self._complete = True
