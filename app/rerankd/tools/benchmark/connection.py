"""A keep-alive HTTP/1.1 connection over a bare asyncio protocol: a tenth of a general client's CPU time.

It does only what a load generator needs: POST or GET, read the whole answer, and note the time of the last byte.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, Self, cast
from urllib.parse import urlsplit

import httptools

from rerankd.errors import ConfigError

_KEPT_HEADERS = frozenset({b"server-timing", b"retry-after", b"retry-after-ms"})


class Answer(NamedTuple):
    """`headers` are Server-Timing, Retry-After and Retry-After-Ms only, by lower-case name; `finished` is
    `perf_counter()`'s time of the last byte.
    """

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    finished: float


class ConnectionLost(Exception):
    """The connection could not be opened, or broke before the answer was complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go: a server, the path of its rerank endpoint, and the headers that each request carries."""

    host: str
    port: int
    path: str
    tls: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_url(cls, url: str, *, path: str = "/v2/rerank", headers: Mapping[str, str] | None = None) -> Self:
        """Parse `http://host:port`.

        Raises:
            ConfigError: it is no http or https URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            parts, port = urlsplit(""), 0
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not the URL of a server; write http://host:port")
        whole_path = parts.path.rstrip("/") + path
        return cls(host=parts.hostname, port=port, path=whole_path, tls=parts.scheme == "https", headers=headers or {})

    def head(self, method: str, path: str) -> bytes:
        """The head of a request without Content-Length."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(lines).encode("latin-1") + b"\r\nContent-Length: "


class Connection:
    """One request at a time. Connects when needed, and again after a failure."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._head = target.head("POST", target.path)
        self._wire: _Wire | None = None

    async def post(self, body: bytes) -> Answer:
        """Send a body and wait for the whole answer. If the caller is cancelled, the connection is closed.

        Raises:
            ConnectionLost: no server listens, or the answer is incomplete.
        """
        return await self._exchange(self._head + b"%d\r\n\r\n" % len(body) + body)

    async def get(self, path: str) -> Answer:
        """GET a path.

        Raises:
            ConnectionLost: no server listens, or the answer is incomplete.
        """
        return await self._exchange(self._target.head("GET", path) + b"0\r\n\r\n")

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _exchange(self, request: bytes) -> Answer:
        try:
            if self._wire is not None and self._wire.usable:
                try:
                    return await self._wire.exchange(request)
                except _Stale:
                    pass  # the server closed an idle connection at that moment; no request was lost
            self._wire = await self._open()
            return await self._wire.exchange(request)
        except _Stale:
            raise ConnectionLost("the connection was closed before any answer") from None
        except BaseException:
            self.close()
            raise

    async def _open(self) -> "_Wire":
        tls = ssl.create_default_context() if self._target.tls else None
        loop = asyncio.get_running_loop()
        try:
            _, wire = await loop.create_connection(_Wire, self._target.host, self._target.port, ssl=tls)
        except OSError as error:
            raise ConnectionLost(str(error)) from None
        return wire


class _Stale(Exception):
    """The connection closed before a byte of the answer came."""


class _Wire(asyncio.Protocol):
    """A connection's bytes, and the answer that is being read."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._begun = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes) -> Answer:
        if self._transport is None:
            raise _Stale
        self._waiter = asyncio.get_running_loop().create_future()
        self._headers, self._body, self._begun = {}, [], False
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from it

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionLost(str(error or "the server closed the connection")) if self._begun else _Stale())

    def data_received(self, data: bytes) -> None:
        self._begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionLost(f"the answer is not HTTP: {error}"))
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower in _KEPT_HEADERS:
            self._headers[lower] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        finished = perf_counter()
        answer = Answer(self._parser.get_status_code(), self._headers, b"".join(self._body), finished)
        if not self._parser.should_keep_alive():
            self.close()
        self._parser = httptools.HttpResponseParser(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
