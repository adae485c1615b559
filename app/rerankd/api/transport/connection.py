"""One HTTP/1.1 connection for uvicorn's server: its requests one after the other, each in bounded time and memory.

Only one request of a connection is worked on. What follows it is neither parsed nor, beyond 64 KiB, read; the next one
is begun when the answer before it has left this process. A peer that does not read is cut off.
"""

import asyncio
import http
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from rerankd.api.answers import error_answer, plain_error
from rerankd.api.transport.door import PROBE_PATHS, Door, Place
from rerankd.api.transport.request_reader import EndOfRequest, Event, Head, Headers, Refusal, RequestReader
from rerankd.errors import BodyTooSlow, InvalidRequest, Unavailable

logger = logging.getLogger(__name__)

# What a connection may have that nobody has asked for yet, of its next requests or of a body.
_AHEAD_BYTES: Final = 64 * 1024
# Events parsed from one connection before other connections get their turn.
_STEPS_PER_TURN: Final = 256
# So long, and so much, a connection that will be closed is read from, for else the peer might lose the answer.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 1 << 20
# A connection that came when all places were taken has little time to say that it is a probe.
_PROBE_TIMEOUT_S: Final = 2.0
_CLIENT_GONE: Final = 499
_BODILESS: Final = frozenset({204, 304})
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in http.HTTPStatus}
_BAD_NAME: Final = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_REASONS: Final = {408: "slow_head", 414: "large_head", 431: "large_head"}
_MALFORMED: Final = "malformed"
_TOO_MANY: Final = "too_many"
_SLOW_READER: Final = "slow_reader"
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


class Connection(asyncio.BufferedProtocol):
    """The seam to uvicorn is its constructor, `shutdown`, and the connections and tasks of the server's state."""

    _buffer = memoryview(bytearray(_AHEAD_BYTES))  # read into and emptied at once, so that one serves all

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        door: Door,
    ) -> None:
        self._loop = _loop or asyncio.get_running_loop()
        self._app = cast("ASGIApp", config.loaded_app)
        self._root_path = config.root_path
        self._app_state = app_state
        self._server = server_state
        self._door = door
        self._reader = RequestReader()
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._read_paused = self._pump_is_due = False
        self._thrown_away = 0
        self._idle = self._closing = self._half_closed = self._draining = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._client = _address(transport.get_extra_info("peername"))
        self._entry = self._door.enter(self._client and self._client[0])
        if self._entry.place is Place.NOTHING:
            self._closing = True
            self._door.refused(self._entry, _TOO_MANY)
            self._transport.abort()
            return
        self._server.connections.add(self)  # type: ignore[arg-type] # uvicorn calls `shutdown` only
        self._address = _address(transport.get_extra_info("sockname"))
        # From here on `pause_writing` means that something has not left this process yet.
        self._transport.set_write_buffer_limits(high=0)
        bounds = self._door.bounds
        probing = self._entry.place is Place.PROBES
        self._within(
            min(_PROBE_TIMEOUT_S, bounds.head_timeout_s) if probing else bounds.head_timeout_s, self._slow_head
        )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self._closing = True
        self._stop_timer()
        self._door.leave(self._entry)
        self._server.connections.discard(self)
        self._flushed.set()
        if self._exchange is not None:
            self._exchange.lose()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            self._thrown_away += nbytes
            if self._thrown_away > _LINGER_BYTES:
                self.abort()
            return
        self._reader.feed(bytes(self._buffer[:nbytes]))
        self._pump()
        if self._idle and self._exchange is None and not self._closing:
            self._await_head()

    def eof_received(self) -> bool:
        """A peer that sends no more has most likely gone: work stops. An answer that needs none is still sent."""
        self._half_closed = True
        self._pump()
        if self._closing or self._exchange is None:
            return False
        self._exchange.half_close()
        return self._exchange.complete

    def pause_writing(self) -> None:
        self._flushed.clear()

    def resume_writing(self) -> None:
        self._flushed.set()

    # What uvicorn calls.

    def shutdown(self) -> None:
        """Finish the request that runs, take no other."""
        self._draining = True
        if self._exchange is None or self._exchange.answered:
            self.close()

    # Reading.

    def _pump(self) -> None:
        """Act on what has arrived, as far as that may be done now."""
        self._pump_is_due = False
        for _ in range(_STEPS_PER_TURN):
            if self._closing or self._must_wait():
                break
            event = self._reader.next_event()
            if event is not None:
                self._take(event)
            elif not self._reader.waiting_bytes:
                break
        else:
            self._pump_soon()
        if self._half_closed and self._exchange is None and not self._pump_is_due:
            self.close()
        self._regulate()

    def _pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _must_wait(self) -> bool:
        exchange = self._exchange
        return exchange is not None and (exchange.complete or exchange.unread_bytes >= _AHEAD_BYTES)

    def _regulate(self) -> None:
        """Stop reading while more waits than may."""
        if self._closing or self._half_closed:
            return
        unread = self._exchange.unread_bytes if self._exchange is not None else 0
        pause = self._reader.waiting_bytes + unread >= _AHEAD_BYTES
        if pause != self._read_paused:
            self._read_paused = pause
            (self._transport.pause_reading if pause else self._transport.resume_reading)()

    def _take(self, event: Event) -> None:
        if isinstance(event, Head):
            self._begin(event)
        elif isinstance(event, Refusal):
            self._refuse(event.status, event.message)
        elif self._exchange is not None:
            if isinstance(event, EndOfRequest):
                self._exchange.end()
                if self._exchange.answered:
                    self._await_next()
            else:
                self._exchange.add(event)

    def _begin(self, head: Head) -> None:
        self._idle = False
        self._stop_timer()
        app = self._app
        if self._entry.place is Place.PROBES and head.path not in PROBE_PATHS:
            self._door.refused(self._entry, _TOO_MANY)
            app = _too_many_connections
        self._exchange = Exchange(head, self, scope=self._scope(head))
        if self._draining or self._entry.place is Place.PROBES:
            self._exchange.keep_alive = False
        if self._half_closed:
            self._exchange.half_close()
        task = self._loop.create_task(self._exchange.run(app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def _scope(self, head: Head) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._address,
            "client": self._client,
            "scheme": "http",
            "method": head.method,
            "root_path": self._root_path,
            "path": self._root_path + head.path,
            "raw_path": self._root_path.encode("ascii") + head.raw_path,
            "query_string": head.query,
            "headers": head.headers,
            "state": self._app_state.copy(),
        }

    # Writing, for the exchange.

    @property
    def default_headers(self) -> Headers:
        return self._server.default_headers

    @property
    def draining(self) -> bool:
        return self._draining

    def write(self, *parts: bytes) -> None:
        if not self._closing:
            self._transport.writelines(parts)

    async def flushed(self) -> None:
        """Wait until all that was written has left this process, or the connection is lost."""
        if not self._flushed.is_set():
            self._within(self._door.bounds.write_timeout_s, self._slow_reader)
            await self._flushed.wait()
            self._stop_timer()

    def body_was_read(self) -> None:
        """There is room for more of it."""
        self._pump_soon()

    def exchange_answered(self, exchange: "Exchange") -> None:
        """The answer is out: go on with what follows, or close."""
        if self._closing:
            return
        if not exchange.keep_alive or self._draining:
            self.close()
        elif exchange.complete:
            self._await_next()
            self._pump_soon()
        else:
            self._within(self._door.bounds.body_timeout_s, self._transport.abort)
            self._pump_soon()

    def abort(self) -> None:
        if not self._transport.is_closing():
            self._transport.abort()

    # Ends.

    def _await_next(self) -> None:
        self._exchange = None
        self._idle = self._reader.idle
        if self._idle:
            self._within(self._door.bounds.idle_timeout_s, self.close)
        else:
            self._await_head()

    def _await_head(self) -> None:
        self._idle = False
        self._within(self._door.bounds.head_timeout_s, self._slow_head)

    def _slow_head(self) -> None:
        if self._reader.idle:
            self.close()
        else:
            self._refuse(408, f"the request's head did not arrive within {self._door.bounds.head_timeout_s:g} s")

    def _slow_reader(self) -> None:
        self._door.refused(self._entry, _SLOW_READER)
        self._transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request, or the rest of one that cannot be read, and close."""
        self._door.refused(self._entry, _REASONS.get(status, _MALFORMED))
        exchange, self._exchange = self._exchange, None
        if exchange is None or not exchange.started:
            self.write(_refusal(status, message, self.default_headers))
        if exchange is not None:
            exchange.lose()
        self.close()

    def close(self) -> None:
        """Close when the peer has the answer. What it still sends is thrown away meanwhile: a reset could overtake."""
        if self._closing:
            return
        self._closing = True
        complete = self._exchange is None or self._exchange.complete
        if self._half_closed or (complete and self._reader.idle):
            self._transport.close()
            self._within(self._door.bounds.write_timeout_s, self._slow_reader)
            return
        if self._read_paused:
            self._transport.resume_reading()
        self._transport.write_eof()
        self._within(_LINGER_S, self._transport.abort)

    def _within(self, seconds: float, otherwise: Callable[[], None]) -> None:
        """Unless something else happens first."""
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, otherwise)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Exchange:
    """One request and its answer, as ASGI has them."""

    def __init__(self, head: Head, connection: Connection, *, scope: Scope) -> None:
        self.keep_alive = head.keep_alive
        self.complete = False  # the whole request has arrived
        self.started = False
        self.answered = False
        self._connection = connection
        self._scope = scope
        self._invitation_due = head.expects_continue
        self._body = bytearray()
        self._told = False  # the application has the whole request
        self._lost = self._half_closed = False
        self._changed = asyncio.Event()
        self._head = _AnswerHead(connection.default_headers)

    @property
    def unread_bytes(self) -> int:
        """What came of the body and was not asked for yet."""
        return len(self._body)

    # What the connection says.

    def add(self, part: bytes) -> None:
        if not self.answered:
            self._body += part
            self._changed.set()

    def end(self) -> None:
        self.complete = True
        self._changed.set()

    def half_close(self) -> None:
        """The peer sends no more."""
        self._half_closed = True
        self._changed.set()

    def lose(self) -> None:
        """Nothing can be sent any more."""
        self._lost = True
        self._changed.set()

    # What the application calls.

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            logger.exception("unexpected error")
        finally:
            if not (self.answered or self._lost):
                # An error of ours, or the end of the time for shutting down.
                self._connection.abort()

    async def receive(self) -> Message:
        if self._invitation_due and not self.started:
            self._invitation_due = False
            if not (self._body or self.complete):
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while (message := self._received()) is None:
            self._changed.clear()
            await self._changed.wait()
        return message

    def _received(self) -> Message | None:
        if self._lost or self.answered:
            return _DISCONNECT
        if self._body or (self.complete and not self._told):
            body, self._body = bytes(self._body), bytearray()
            self._told = self.complete
            if not self.complete:
                self._connection.body_was_read()
            return {"type": "http.request", "body": body, "more_body": not self.complete}
        return _DISCONNECT if self._half_closed else None

    async def send(self, message: Message) -> None:
        """Returns when what is sent has left this process, so that until then it counts as held."""
        if self._lost:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        else:
            await self._write(message.get("body", b""), last=not message.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self.started:
            raise RuntimeError("two answers to one request")
        self.started = True
        if status == _CLIENT_GONE:
            self.lose()
            self._connection.close()
            return
        self._head.begin(status, headers, bodiless=self._scope["method"] == "HEAD")
        # An invited body that was not asked for may or may not come; nobody could tell it from the next request.
        if self._connection.draining or (self._invitation_due and not self.complete):
            self.keep_alive = False

    async def _write(self, body: bytes, *, last: bool) -> None:
        if not self.started or self.answered:
            raise RuntimeError("a body that belongs to no answer")
        head = self._head.finish(len(body) if last else None, keep_alive=self.keep_alive)
        self.keep_alive = self.keep_alive and self._head.keep_alive
        content = self._head.content(body, last=last)
        self._connection.write(*(part for part in (head, content) if part))
        await self._connection.flushed()
        if last:
            self.answered = True
            self._body.clear()
            self._changed.set()
            self._connection.exchange_answered(self)


class _AnswerHead:
    """The head of an answer, written with the first part of the body, and what it says of the body's length."""

    def __init__(self, default_headers: Headers) -> None:
        self.keep_alive = True
        self._lines: list[bytes] = []
        self._written = False
        self._left: int | None = None
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
                self._left = int(value)
            self._lines.append(b"%b: %b\r\n" % (lower, value))
        self._bodiless = bodiless or status in _BODILESS

    def finish(self, whole: int | None, *, keep_alive: bool) -> bytes:
        """The head's bytes, once; `whole` is the size of a body that comes in one part."""
        if self._written:
            return b""
        self._written = True
        if self._left is None and not self._bodiless:
            if whole is None:
                self.keep_alive = False  # its end is the connection's
            else:
                self._left = whole
                self._lines.append(b"content-length: %d\r\n" % whole)
        if not (keep_alive and self.keep_alive):
            self._lines.append(b"connection: close\r\n")
        return b"".join([*self._lines, b"\r\n"])

    def content(self, body: bytes, *, last: bool) -> bytes:
        """What is sent of a part of the body."""
        if self._bodiless:
            return b""
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (last and self._left):
                raise RuntimeError("the answer is not as long as its Content-Length says")
        return body


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of a TCP socket's name; IPv6 has two more."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None


def _refusal(status: int, message: str, headers: Headers) -> bytes:
    code = BodyTooSlow.code if status == BodyTooSlow.status else InvalidRequest.code
    answer = plain_error(status, code=code, message=message)
    head = _AnswerHead(headers)
    head.begin(status, answer.raw_headers, bodiless=False)
    return head.finish(len(answer.body), keep_alive=False) + bytes(answer.body)


async def _too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    error = Unavailable("all connections that this service takes are in use; use those that you have, or come back")
    await error_answer(error)(scope, receive, send)
