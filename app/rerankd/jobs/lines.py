"""The lines of a job: how they are read from its file, what is wrong with them, and how their results are written."""

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from rerankd.jobs.records import Job, Problem
from rerankd.jobs.store import JobStore

_LONGEST_ID: Final = 512
_SHOWN: Final = 60


class Unreadable(Exception):
    """A file has a line that breaks a bound; `number` counts from 0."""

    def __init__(self, code: str, message: str, number: int) -> None:
        super().__init__(message)
        self.code, self.number = code, number


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank; `number` counts from 0, blank lines too."""

    number: int
    text: bytes


async def read_lines(store: JobStore, file_id: str, *, most_bytes: int, most_lines: int) -> AsyncIterator[Line]:
    """The lines of a file, one chunk of it in memory at a time.

    Raises:
        Unreadable: a line has more than `most_bytes`, or there are more than `most_lines`, blank ones too.
    """
    number, rest = 0, bytearray()
    for chunk_number in range(2**31):
        chunk = await store.read_chunk(file_id, chunk_number)
        for text in _whole_lines(rest, chunk):
            if len(text) > most_bytes:
                raise _too_long(number)
            blank = not text.strip()
            # The end of the last line begins one that is not there.
            if number + (not blank) > most_lines:
                raise Unreadable("too_many_lines", f"a file has at most {most_lines} lines", number)
            if not blank:
                yield Line(number, text)
            number += 1
        if len(rest) > most_bytes:
            raise _too_long(number)
        if chunk is None:
            return


def _whole_lines(rest: bytearray, chunk: bytes | None) -> list[bytes]:
    """The lines that end in a chunk, of which the first began in `rest`; what begins there stays in `rest`."""
    if chunk is None:
        return [bytes(rest)]
    first, *more = chunk.split(b"\n")
    rest += first
    if not more:
        return []
    *whole, begun = [bytes(rest), *more]
    rest[:] = begun
    return whole


def _too_long(number: int) -> Unreadable:
    return Unreadable("line_too_long", f"line {number + 1} is too long", number)


def known_id(custom_id: str) -> bytes:
    """What is remembered of an id, in little memory: a file may have 100 MB of them."""
    return blake2b(custom_id.encode(), digest_size=16).digest()


def problem_of(fields: Mapping[str, Any], line: Line, endpoint: str, known: Collection[bytes]) -> Problem | None:
    """What is wrong with a line's envelope; `known` has `known_id` of the lines before it."""

    def wrong(code: str, message: str) -> Problem:
        return Problem(code=code, message=message, line=line.number + 1)

    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
        return wrong("invalid_custom_id", f"custom_id must be a string of 1 to {_LONGEST_ID} characters")
    if known_id(custom_id) in known:
        return wrong("duplicate_custom_id", f"custom_id {custom_id[:_SHOWN]!r} is there twice")
    if fields.get("method", "POST") != "POST":
        return wrong("invalid_method", 'method must be "POST"')
    if fields.get("url") != endpoint:
        return wrong("mismatched_endpoint", f"url must be the batch's endpoint, {endpoint!r}")
    if not isinstance(fields.get("body"), dict):
        return wrong("invalid_body", "body must be an object: the request as it would be sent by itself")
    return None


def answer_line(job: Job, line: Line, custom_id: str, *, status: int, body: bytes) -> bytes:
    """The line of a request's answer, be it results or an error."""
    response = {"status_code": status, "request_id": _request_id(job, line), "body": orjson.Fragment(body)}
    return _written(job, line, custom_id, response=response, error=None)


def error_line(job: Job, line: Line, custom_id: str, *, code: str, message: str) -> bytes:
    """The line of a request that was never answered."""
    return _written(job, line, custom_id, response=None, error={"code": code, "message": message})


def _written(job: Job, line: Line, custom_id: str, **outcome: Any) -> bytes:  # noqa: ANN401 - JSON
    identity = {"id": _request_id(job, line), "custom_id": custom_id}
    return orjson.dumps({**identity, **outcome}, option=orjson.OPT_APPEND_NEWLINE)


def _request_id(job: Job, line: Line) -> str:
    return f"batch_req_{job.id.removeprefix('batch_')}_{line.number + 1}"
