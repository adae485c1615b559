"""JSON answers and the one error body that every dialect's clients can read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any, Final

import orjson
from starlette.responses import Response

from rerankd.concurrency.slices import Sliced
from rerankd.domain import Timings
from rerankd.errors import BodyTooSlow, RerankError, Unauthorized
from rerankd.gateway.failures import Failure, failure_of

Json = dict[str, Any]
# An iterator makes the entries of a list one by one, so that a long answer can be written in slices.
Answer = Json | Iterator[Json] | Iterator[list[Json]]

_ROWS_PER_STEP: Final = 250


def four_strings(_status: int, code: str, message: str) -> Json:
    """One body for all clients that read a string: each family of them reads a different one."""
    return {"message": message, "detail": message, "error": message, "error_type": code}


# For the OpenAPI document.
ERROR_SCHEMA: Final[Json] = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("message", "detail", "error", "error_type")},
    "required": ["message", "detail", "error", "error_type"],
}


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """`body` makes the body of an error from its status, code and message; `schema` describes it."""

    body: Callable[[int, str, str], Json]
    schema: Json


FOUR_STRINGS: Final = ErrorForm(four_strings, ERROR_SCHEMA)


def json_answer(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401 - JSON
    return json_response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status=status, headers=headers)


def json_response(written: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(written, status_code=status, headers=headers, media_type="application/json")


def write_json(content: Answer) -> Sliced[bytes]:
    """The JSON of an answer, step by step: an iterator in it becomes a list, of which a step makes and writes some."""
    if isinstance(content, Iterator):
        return (yield from _write_rows(content))
    fields = {}
    for name, value in content.items():
        fields[name] = orjson.Fragment((yield from _write_rows(value))) if isinstance(value, Iterator) else value
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def _write_rows(rows: Iterator[Json] | Iterator[list[Json]]) -> Sliced[bytes]:
    written = []
    while chunk := list(islice(rows, _ROWS_PER_STEP)):
        written.append(orjson.dumps(chunk, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        yield
    return b"[%b]" % b",".join(written)


def error_answer(error: RerankError, *, form: ErrorForm = FOUR_STRINGS) -> Response:
    return failure_answer(failure_of(error), form=form)


def failure_answer(failure: Failure, *, form: ErrorForm = FOUR_STRINGS) -> Response:
    headers, message = {}, failure.message
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, ceil(failure.retry_after_s)))
        headers["Retry-After-Ms"] = str(max(1, ceil(failure.retry_after_s * 1000)))
    if failure.code == Unauthorized.code:
        headers["WWW-Authenticate"] = "Bearer"
        message += "; send yours in the header `Authorization: Bearer KEY`"
    if failure.code == BodyTooSlow.code:
        headers["Connection"] = "close"
    return json_answer(form.body(failure.status, failure.code, message), status=failure.status, headers=headers)


def plain_error(status: int, *, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return json_answer(four_strings(status, code, message), status=status, headers=headers)


def server_timing(timings: Timings, *, total_s: float) -> str:
    """The Server-Timing header, in milliseconds."""
    parts = {
        "cache": timings.cache_s,
        "tokenize": timings.tokenize_s,
        "queue": timings.queue_s,
        "inference": timings.inference_s,
        "total": total_s,
    }
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in parts.items())
