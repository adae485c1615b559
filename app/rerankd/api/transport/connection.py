"""One HTTP/1.1 connection for uvicorn's server: one request after the other, each in bounded time and memory.

A connection has one request in progress. Bytes that follow it are not parsed, and beyond 64 KiB not even read. The next
request begins when the response to the previous one has left this process. A peer that does not read is disconnected.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from rerankd.api.answers import error_answer, plain_error
from rerankd.api.transport.connection_limiter import PROBE_PATHS, Allowed, ConnectionLimiter
from rerankd.api.transport.exchange import Exchange
from rerankd.api.transport.request_reader import EndOfRequest, Event, Head, Headers, Refusal, RequestReader
from rerankd.api.transport.response_head import ResponseHead
from rerankd.errors import BodyTooSlow, InvalidRequest, Unavailable

# How much may be buffered of the next requests, or of a body that the application has not read yet.
_READ_AHEAD_BYTES: Final = 64 * 1024
# Events parsed from one connection before the event loop serves others.
_EVENTS_PER_TURN: Final = 256
# A connection that is being closed is still read for this long, and up to this size, because a reset could make the
# peer lose the response.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 1 << 20
# A connection beyond the limit has little time to show that it is a probe.
_PROBE_TIMEOUT_S: Final = 2.0
_REASONS: Final = {408: "slow_head", 414: "large_head", 431: "large_head"}
_MALFORMED: Final = "malformed"
_TOO_MANY: Final = "too_many"
_SLOW_READER: Final = "slow_reader"


class Connection(asyncio.BufferedProtocol):
    """uvicorn uses the constructor and `shutdown`, and looks at the connections and tasks of the server's state."""

    _buffer = memoryview(bytearray(_READ_AHEAD_BYTES))  # emptied as soon as it was read into, so one is enough for all

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limiter: ConnectionLimiter,
    ) -> None:
        self._loop = _loop or asyncio.get_running_loop()
        self._app = cast("ASGIApp", config.loaded_app)
        self._root_path = config.root_path
        self._app_state = app_state
        self._server = server_state
        self._limiter = limiter
        self._reader = RequestReader()
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._read_paused = self._pump_scheduled = False
        self._discarded_bytes = 0
        self._idle = self._closing = self._half_closed = self._draining = False

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._client = _address(transport.get_extra_info("peername"))
        self._slot = self._limiter.acquire(self._client and self._client[0])
        if self._slot.allowed is Allowed.NOTHING:
            self._closing = True
            self._limiter.count_refusal(self._slot, _TOO_MANY)
            self._transport.abort()
            return
        self._server.connections.add(self)  # type: ignore[arg-type] # uvicorn calls `shutdown` only
        self._address = _address(transport.get_extra_info("sockname"))
        # So `pause_writing` means that something has not left this process yet.
        self._transport.set_write_buffer_limits(high=0)
        limits = self._limiter.limits
        probing = self._slot.allowed is Allowed.PROBES
        self._start_timer(
            min(_PROBE_TIMEOUT_S, limits.head_timeout_s) if probing else limits.head_timeout_s, self._on_slow_head
        )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self._closing = True
        self._stop_timer()
        self._limiter.release(self._slot)
        self._server.connections.discard(self)
        self._flushed.set()
        if self._exchange is not None:
            self._exchange.lose()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            self._discarded_bytes += nbytes
            if self._discarded_bytes > _LINGER_BYTES:
                self.abort()
            return
        self._reader.feed(bytes(self._buffer[:nbytes]))
        self._pump()
        if self._idle and self._exchange is None and not self._closing:
            self._await_head()

    def eof_received(self) -> bool:
        """Stop the work: a peer that sends no more has most likely gone. A complete request still gets its response."""
        self._half_closed = True
        self._pump()
        if self._closing or self._exchange is None:
            return False
        self._exchange.half_close()
        return self._exchange.request_complete

    def pause_writing(self) -> None:
        self._flushed.clear()

    def resume_writing(self) -> None:
        self._flushed.set()

    # Called by uvicorn.

    def shutdown(self) -> None:
        """Finish the request in progress and accept no other."""
        self._draining = True
        if self._exchange is None or self._exchange.response_complete:
            self.close()

    # Reading.

    def _pump(self) -> None:
        """Handle what has arrived, as far as that is allowed now."""
        self._pump_scheduled = False
        for _ in range(_EVENTS_PER_TURN):
            if self._closing or self._must_wait():
                break
            event = self._reader.next_event()
            if event is not None:
                self._handle(event)
            elif not self._reader.waiting_bytes:
                break
        else:
            self._schedule_pump()
        if self._half_closed and self._exchange is None and not self._pump_scheduled:
            self.close()
        self._pause_or_resume_reading()

    def _schedule_pump(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _must_wait(self) -> bool:
        exchange = self._exchange
        return exchange is not None and (exchange.request_complete or exchange.unread_bytes >= _READ_AHEAD_BYTES)

    def _pause_or_resume_reading(self) -> None:
        """Stop reading while the buffers are full."""
        if self._closing or self._half_closed:
            return
        unread = self._exchange.unread_bytes if self._exchange is not None else 0
        pause = self._reader.waiting_bytes + unread >= _READ_AHEAD_BYTES
        if pause != self._read_paused:
            self._read_paused = pause
            (self._transport.pause_reading if pause else self._transport.resume_reading)()

    def _handle(self, event: Event) -> None:
        if isinstance(event, Head):
            self._begin_exchange(event)
        elif isinstance(event, Refusal):
            self._refuse(event.status, event.message)
        elif self._exchange is not None:
            if isinstance(event, EndOfRequest):
                self._exchange.end()
                if self._exchange.response_complete:
                    self._await_next_request()
            else:
                self._exchange.add(event)

    def _begin_exchange(self, head: Head) -> None:
        self._idle = False
        self._stop_timer()
        app = self._app
        if self._slot.allowed is Allowed.PROBES and head.path not in PROBE_PATHS:
            self._limiter.count_refusal(self._slot, _TOO_MANY)
            app = _too_many_connections
        self._exchange = Exchange(head, self, scope=self._scope(head))
        if self._draining or self._slot.allowed is Allowed.PROBES:
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

    # Called by the exchange (its `Channel`).

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
        if not self._flushed.is_set():
            self._start_timer(self._limiter.limits.write_timeout_s, self._on_slow_reader)
            await self._flushed.wait()
            self._stop_timer()

    def body_read(self) -> None:
        self._schedule_pump()

    def response_sent(self, exchange: Exchange) -> None:
        if self._closing:
            return
        if not exchange.keep_alive or self._draining:
            self.close()
        elif exchange.request_complete:
            self._await_next_request()
            self._schedule_pump()
        else:
            self._start_timer(self._limiter.limits.body_timeout_s, self._transport.abort)
            self._schedule_pump()

    def abort(self) -> None:
        if not self._transport.is_closing():
            self._transport.abort()

    # Timers and closing.

    def _await_next_request(self) -> None:
        self._exchange = None
        self._idle = self._reader.idle
        if self._idle:
            self._start_timer(self._limiter.limits.idle_timeout_s, self.close)
        else:
            self._await_head()

    def _await_head(self) -> None:
        self._idle = False
        self._start_timer(self._limiter.limits.head_timeout_s, self._on_slow_head)

    def _on_slow_head(self) -> None:
        if self._reader.idle:
            self.close()
        else:
            self._refuse(408, f"the request's head did not arrive within {self._limiter.limits.head_timeout_s:g} s")

    def _on_slow_reader(self) -> None:
        self._limiter.count_refusal(self._slot, _SLOW_READER)
        self._transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer a request that is not valid, or whose rest cannot be read, and close."""
        self._limiter.count_refusal(self._slot, _REASONS.get(status, _MALFORMED))
        exchange, self._exchange = self._exchange, None
        if exchange is None or not exchange.response_started:
            self.write(_refusal(status, message, self.default_headers))
        if exchange is not None:
            exchange.lose()
        self.close()

    def close(self) -> None:
        """Close when the peer has the response. Until then discard what it sends, so that no reset overtakes it."""
        if self._closing:
            return
        self._closing = True
        complete = self._exchange is None or self._exchange.request_complete
        if self._half_closed or (complete and self._reader.idle):
            self._transport.close()
            self._start_timer(self._limiter.limits.write_timeout_s, self._on_slow_reader)
            return
        if self._read_paused:
            self._transport.resume_reading()
        self._transport.write_eof()
        self._start_timer(_LINGER_S, self._transport.abort)

    def _start_timer(self, seconds: float, on_timeout: Callable[[], None]) -> None:
        """Replace the timer; there is one at a time."""
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of a TCP socket's name; IPv6 has two more."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None


def _refusal(status: int, message: str, headers: Headers) -> bytes:
    code = BodyTooSlow.code if status == BodyTooSlow.status else InvalidRequest.code
    answer = plain_error(status, code=code, message=message)
    head = ResponseHead(headers)
    head.begin(status, answer.raw_headers, bodiless=False)
    return head.finish(len(answer.body), keep_alive=False) + bytes(answer.body)


async def _too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    error = Unavailable("the limit of connections is reached; reuse yours, or try again later")
    await error_answer(error)(scope, receive, send)
