"""Middleware for every HTTP request: an id, a log line, bounds for its body, and an answer even after a bug of ours.

Plain ASGI: no body is copied and no task is started.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerankd.api.access import Access, access_of, start_access
from rerankd.api.answers import error_answer, failure_answer
from rerankd.api.lifecycle import Lifecycle
from rerankd.errors import BodyTooSlow, InvalidRequest, RequestTooLarge, Unavailable
from rerankd.gateway.failures import INTERNAL_ERROR
from rerankd.gateway.held_bytes import Claim, HeldBytes
from rerankd.telemetry.logs import request_id

logger = logging.getLogger(__name__)

_SAFE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_SHOWN = 50
_CLAIM = "rerankd.claim"
# For browsers: no guessing of content types, no frames, no referrer.
_HARDENING = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)


class RequestContext:
    """Gives each request an id (the client's X-Request-ID if it is harmless) and logs its end. While the service
    drains, every answer closes its connection, so that no client or proxy sends another request on it.
    """

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        access = start_access(scope)
        identity = _identity(Headers(scope=scope))
        token = request_id.set(identity)

        async def counting_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                access.bytes_in += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                access.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = identity
                headers.raw.extend(_HARDENING)
                if self._lifecycle.draining:
                    headers["Connection"] = "close"
            else:
                access.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, counting_receive, send_with_id, access)
        finally:
            access.log(scope)
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, access: Access) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The time to shut down is over. Tell the client, so that it can ask another replica.
            if access.status:
                raise
            await error_answer(Unavailable("the service is shutting down"))(scope, receive, send)
        except Exception:
            logger.exception("unexpected error")
            if access.status:
                raise
            await failure_answer(INTERNAL_ERROR)(scope, receive, send)


def _identity(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _SAFE_ID.fullmatch(given) else uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyBounds:
    """The most bytes of one body, and how long it may take to arrive; `way_out` says how to send less."""

    max_bytes: int
    timeout_s: float
    way_out: str = "send fewer documents"

    def check_head(self, headers: Headers) -> None:
        encoding = headers.get("content-encoding", "").strip()
        if encoding.lower() not in {"", "identity"}:
            raise InvalidRequest(f"Content-Encoding {encoding[:_SHOWN]!r} is not supported; send the body as it is")
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise self._too_large(int(declared))

    async def in_time(self, receive: Receive, end: float) -> Message:
        try:
            async with asyncio.timeout_at(end):
                return await receive()
        except TimeoutError:
            raise BodyTooSlow(
                f"the body did not arrive within {self.timeout_s:g} s; send it faster, or {self.way_out}"
            ) from None

    def check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise self._too_large(size)

    def _too_large(self, size: int) -> RequestTooLarge:
        return RequestTooLarge(
            f"the body has {size} bytes or more; at most {self.max_bytes} are allowed: {self.way_out}"
        )


class BodyLimit:
    """Bounds what bodies and answers cost. An error is raised where the body is read: by then the key was checked, and
    the error is counted as every other answer is. The bytes of a body are held until there is an answer, and those of
    the answer until it is sent.
    """

    def __init__(
        self, app: ASGIApp, *, bounds: BodyBounds, held: HeldBytes, others: Mapping[str, BodyBounds] | None = None
    ) -> None:
        """`others` are the bounds of some paths."""
        self._app = app
        self._usual_bounds = bounds
        self._bounds_of = others or {}
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claim: Claim | None = None
        complete = False
        size = 0
        bounds = self._bounds_of.get(scope["path"], self._usual_bounds)
        end = asyncio.get_running_loop().time() + bounds.timeout_s

        async def bounded_receive() -> Message:
            nonlocal claim, complete, size
            if complete:
                return await receive()
            if claim is None:
                headers = Headers(scope=scope)
                bounds.check_head(headers)
                claim = scope[_CLAIM] = Claim(self._held, access_of(scope).call.key)
            message = await bounds.in_time(receive, end)
            if message["type"] == "http.request":
                arrived = len(message.get("body", b""))
                size += arrived
                bounds.check_size(size)
                claim.take(arrived)
            complete = not message.get("more_body", False)
            return message

        async def holding_send(message: Message) -> None:
            if claim is not None and message["type"] == "http.response.body":
                # When the last part is sent, nothing else is left of the request. There is always room for an error,
                # which is small.
                size = len(message.get("body", b""))
                claim.hold(max(0, size - claim.bytes) if message.get("more_body") else size - claim.bytes)
            await send(message)

        try:
            await self._app(scope, bounded_receive, holding_send)
        finally:
            if claim is not None:
                claim.release()


def claim_of(scope: Scope) -> Claim:
    """The bytes that a request holds, once its body is read."""
    claim: Claim | None = scope.get(_CLAIM)
    return Claim(HeldBytes(0), "") if claim is None else claim
