"""Answers in lines: the places of documents as they become final, and the answer itself as the last line.

The work goes on in a task of its own, which ends with the response. No lines pile up while a client does not read: the
places that become final meanwhile go into one line, and each place is named once.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rerankd.api.access import access_of
from rerankd.api.answers import ErrorForm, failure_answer
from rerankd.domain import Settled
from rerankd.gateway.failures import CANCELLED, INTERNAL_ERROR

logger = logging.getLogger(__name__)

NDJSON: Final = "application/x-ndjson"
_ANSWERED: Final = 200
# What a proxy must know to pass lines on as they come.
_UNBUFFERED: Final = {"X-Accel-Buffering": "no"}
_OF_ONE_BODY: Final = frozenset(["content-length", "content-type"])


def wants_lines(headers: Mapping[str, str]) -> bool:
    """Whether a client accepts lines and no answer in one piece."""
    accepted = headers.get("accept", "").lower()
    return NDJSON in accepted and "application/json" not in accepted


async def answer_in_lines(work: Callable[[Settled], Coroutine[Any, Any, Response]], *, form: ErrorForm) -> Response:
    """What the work answers, as a line, where it settles no place before; else a response that is still to come. What
    fails before the first line has its own status.
    """
    lines = _Lines()
    lines.task = asyncio.create_task(work(lines.settle))
    lines.task.add_done_callback(lambda _: lines.changed.set())
    try:
        await lines.changed.wait()
    except asyncio.CancelledError:
        await _end(lines.task)
        raise
    return _as_line(lines.task.result()) if lines.task.done() else _LinesResponse(lines, form)


class _Lines:
    """What is settled and not sent yet."""

    task: asyncio.Task[Response]

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._settled: list[tuple[int, Sequence[int]]] = []

    def settle(self, place: int, indices: Sequence[int]) -> None:
        self._settled.append((place, indices))
        self.changed.set()

    def next_line(self) -> bytes:
        """All that was settled since the last line; empty: nothing was."""
        settled, self._settled = self._settled, []
        self.changed.clear()
        places = [
            {"index": index, "rank": rank}
            for place, indices in settled
            for rank, index in enumerate(indices, place + 1)
        ]
        return orjson.dumps({"settled": places}, option=orjson.OPT_APPEND_NEWLINE) if places else b""


class _LinesResponse(Response):
    media_type = NDJSON

    def __init__(self, lines: _Lines, form: ErrorForm) -> None:
        self.status_code = _ANSWERED
        self.background = None
        self.init_headers(_UNBUFFERED)
        self._lines = lines
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive  # the work itself ends when the client goes away
        task = self._lines.task
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while not task.done():
                if line := self._lines.next_line():
                    await send({"type": "http.response.body", "body": line, "more_body": True})
                else:
                    await self._lines.changed.wait()
            await self._send_last(scope, send)
        finally:
            await _end(task)

    async def _send_last(self, scope: Scope, send: Send) -> None:
        try:
            answer = self._lines.task.result()
        except Exception:
            logger.exception("unexpected error")
            answer = failure_answer(INTERNAL_ERROR, form=self._form)
        # The client was told 200; the log shall say how it ended.
        access_of(scope).status = answer.status_code
        if answer.status_code != CANCELLED.status:
            await send({"type": "http.response.body", "body": _line_of(bytes(answer.body))})


def _as_line(answer: Response) -> Response:
    if answer.status_code != _ANSWERED:
        return answer
    headers = {name: value for name, value in answer.headers.items() if name not in _OF_ONE_BODY}
    return Response(_line_of(bytes(answer.body)), headers=headers, media_type=NDJSON)


def _line_of(body: bytes) -> bytes:
    """JSON in one line. It has breaks where documents are returned as they came, and those are between its tokens."""
    return body.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


async def _end(task: asyncio.Task[Response]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
