"""One request and its response, as an ASGI application sees them."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Scope

from rerankd.api.transport.request_reader import Head, Headers
from rerankd.api.transport.response_head import ResponseHead
from rerankd.gateway.failures import CANCELLED

logger = logging.getLogger(__name__)

_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


class Channel(Protocol):
    """What an exchange needs of its connection."""

    @property
    def default_headers(self) -> Headers: ...

    @property
    def draining(self) -> bool: ...

    def write(self, *parts: bytes) -> None: ...

    async def flushed(self) -> None:
        """Wait until all that was written has left this process, or the connection is lost."""

    def body_read(self) -> None:
        """The application took what had arrived of the body, so there is room for more."""

    def response_sent(self, exchange: "Exchange") -> None:
        """The whole response has left this process."""

    def close(self) -> None: ...

    def abort(self) -> None: ...


class Exchange:
    """The connection calls `add`, `end`, `half_close` and `lose`; the application calls `receive` and `send`."""

    def __init__(self, head: Head, channel: Channel, *, scope: Scope) -> None:
        self.keep_alive = head.keep_alive
        self.request_complete = False  # all of it has arrived
        self.response_started = False
        self.response_complete = False  # all of it has left this process
        self._channel = channel
        self._scope = scope
        self._continue_due = head.expects_continue
        self._body: bytes | bytearray = b""
        self._delivered = False  # the application has the whole request
        self._lost = self._half_closed = False
        self._changed = asyncio.Event()
        self._head = ResponseHead(channel.default_headers)

    @property
    def unread_bytes(self) -> int:
        """How much of the body has arrived and was not read by the application yet."""
        return len(self._body)

    def add(self, part: bytes) -> None:
        if not self.response_complete:
            if not self._body:
                self._body = part  # most bodies come in one part, which is not copied
            else:
                if isinstance(self._body, bytes):
                    self._body = bytearray(self._body)
                self._body += part
            self._changed.set()

    def end(self) -> None:
        self.request_complete = True
        self._changed.set()

    def half_close(self) -> None:
        """The peer sends no more."""
        self._half_closed = True
        self._changed.set()

    def lose(self) -> None:
        """Nothing can be sent any more."""
        self._lost = True
        self._changed.set()

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            logger.exception("unexpected error")
        finally:
            if not (self.response_complete or self._lost):
                # A bug of ours, or the time for shutting down is over.
                self._channel.abort()

    async def receive(self) -> Message:
        if self._continue_due and not self.response_started:
            self._continue_due = False
            if not (self._body or self.request_complete):
                self._channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while (message := self._next_message()) is None:
            self._changed.clear()
            await self._changed.wait()
        return message

    def _next_message(self) -> Message | None:
        if self._lost or self.response_complete:
            return _DISCONNECT
        if self._body or (self.request_complete and not self._delivered):
            body, self._body = bytes(self._body), b""
            self._delivered = self.request_complete
            if not self.request_complete:
                self._channel.body_read()
            return {"type": "http.request", "body": body, "more_body": not self.request_complete}
        return _DISCONNECT if self._half_closed else None

    async def send(self, message: Message) -> None:
        """Return when the message has left this process, so that until then its bytes count as held."""
        if self._lost:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        else:
            await self._write(message.get("body", b""), last=not message.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self.response_started:
            raise RuntimeError("the application began a second response")
        self.response_started = True
        if status == CANCELLED.status:
            self.lose()
            self._channel.close()
            return
        self._head.begin(status, headers, bodiless=self._scope["method"] == "HEAD")
        # After `Expect: 100-continue` without a 100 the client may or may not send the body, and nothing tells that
        # body from the next request.
        if self._channel.draining or (self._continue_due and not self.request_complete):
            self.keep_alive = False

    async def _write(self, body: bytes, *, last: bool) -> None:
        if not self.response_started or self.response_complete:
            raise RuntimeError("the application sent a body outside of a response")
        head = self._head.finish(len(body) if last else None, keep_alive=self.keep_alive)
        self.keep_alive = self.keep_alive and self._head.keep_alive
        content = self._head.content(body, last=last)
        self._channel.write(*(part for part in (head, content) if part))
        await self._channel.flushed()
        if last:
            self.response_complete = True
            self._body = b""
            self._changed.set()
            self._channel.response_sent(self)
