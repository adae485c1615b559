"""What happens to every HTTP request: an id, a log line, a size limit, and an answer even to our own bugs.

Plain ASGI: no body is copied and no task is started.
"""

import asyncio
import logging
import re
from dataclasses import dataclass
from time import perf_counter
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.answers import error_answer, plain_error
from app.errors import InvalidRequest, RequestTooLarge, Unavailable
from app.logs import request_id

logger = logging.getLogger("app.access")

_SAFE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})


@dataclass(slots=True)
class _Sent:
    """What of the answer went out: its status, 0 before the first byte."""

    status: int = 0


class RequestContext:
    """Gives each request an id (the caller's own X-Request-ID where it is harmless) and logs its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        sent = _Sent()
        identity = _identity(Headers(scope=scope))
        token = request_id.set(identity)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = identity
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, sent)
        finally:
            _log(scope, sent.status, perf_counter() - started)
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, sent: _Sent) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The server ran out of time to finish what runs; whoever waits is told so, and may ask another replica.
            if sent.status:
                raise
            await error_answer(Unavailable("the service is shutting down"))(scope, receive, send)
        except Exception:
            logger.exception("unexpected error")
            if sent.status:
                raise
            message = "internal error; the server's log has the cause under this request's id"
            await plain_error(500, code="internal_error", message=message)(scope, receive, send)


def _identity(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _SAFE_ID.fullmatch(given) else uuid4().hex


def _log(scope: Scope, status: int, seconds: float) -> None:
    level = logging.DEBUG if scope["path"] in _QUIET_PATHS and status == 200 else logging.INFO
    logger.log(
        level,
        "request",
        extra={
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "duration_ms": round(seconds * 1000, 2),
        },
    )


class BodyLimit:
    """Refuses bodies over `max_bytes`, by their declared length at once and else while they arrive."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "").strip()
        if encoding.lower() not in {"", "identity"}:
            refusal = InvalidRequest(f"Content-Encoding {encoding!r} is not supported; send the body as it is")
            await error_answer(refusal)(scope, receive, send)
            return
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            await error_answer(self._refusal(int(declared)))(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                if total > self._max_bytes:
                    raise self._refusal(total)
            return message

        return counted

    def _refusal(self, size: int) -> RequestTooLarge:
        return RequestTooLarge(
            f"the body has {size} bytes or more; at most {self._max_bytes} are taken: send fewer documents"
        )
