"""A server of this process, whose application says what it was asked, and clients that send it bytes as they are."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from rerankd.api.transport.connection import Connection
from rerankd.api.transport.connection_limiter import ConnectionLimiter, ConnectionLimits
from tests.fakes import RecordingObserver

BOUNDS: Final = ConnectionLimits(
    max_connections=100,
    max_per_address=None,
    head_timeout_s=20.0,
    body_timeout_s=20.0,
    idle_timeout_s=20.0,
    write_timeout_s=20.0,
)
_PATIENCE_S: Final = 20.0


@dataclass
class Echo:
    """Answers with what it was asked, and remembers it. `/slow` waits for `go` or for the client's end, `/large`
    answers with `large_bytes`, `/early` does not read its body.
    """

    large_bytes: int = 8 << 20
    asked: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.asked.append(path)
        body = b"" if path == "/early" else await _body(receive)
        if body is None:
            self.gone.append(path)
            return
        if path == "/slow" and not await self._released(receive):
            self.gone.append(path)
            await send({"type": "http.response.start", "status": 499, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        said = {
            "method": scope["method"],
            "path": path,
            "body": body.decode("latin-1"),
            "headers": len(scope["headers"]),
        }
        content = b"x" * self.large_bytes if path == "/large" else json.dumps(said).encode()
        head = [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": content})
        self.finished.append(path)

    async def _released(self, receive: Receive) -> bool:
        """Whether `go` comes before the client goes."""
        going, leaving = asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(receive())
        await asyncio.wait({going, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (going, leaving):
            waiting.cancel()
        return going.done() and not going.cancelled()


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None: the client went away."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


@dataclass(frozen=True)
class RawServer:
    """`address` is where it listens."""

    address: tuple[str, int]
    state: ServerState
    limiter: ConnectionLimiter
    observer: RecordingObserver

    def refused(self) -> list[str]:
        """Why connections were refused, in order."""
        return [fields["reason"] for fields in self.observer.named("connection_refused")]

    @asynccontextmanager
    async def connected(self, **options: Any) -> AsyncIterator["RawClient"]:
        """A client; `options` are those of the connection, as `limit`."""
        reader, writer = await asyncio.open_connection(*self.address, **options)
        try:
            yield RawClient(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, request: bytes) -> bytes:
        """All that comes for these bytes until the server closes; they should make it close."""
        async with self.connected() as client:
            await client.send(request)
            return await client.rest()


@dataclass(frozen=True)
class RawClient:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """The status and body of the next answer, framed by its Content-Length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), _PATIENCE_S)
        lines = head.lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
        return int(head.split(b" ", 2)[1]), await asyncio.wait_for(self.reader.readexactly(length), _PATIENCE_S)

    async def rest(self) -> bytes:
        """What still comes until the server closes."""
        data = b""
        with suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(1 << 16), _PATIENCE_S):
                data += piece
        return data


@asynccontextmanager
async def raw_server(app: ASGIApp, protocol: type[Connection] = Connection, **bounds: Any) -> AsyncIterator[RawServer]:
    """Serve on a free port of the loopback; `bounds` replace those of `BOUNDS`."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
    config.load()
    observer = RecordingObserver()
    limiter = ConnectionLimiter(replace(BOUNDS, **bounds), observer)
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config, state, {}, limiter=limiter), "127.0.0.1", 0
    )
    async with server:
        yield RawServer(server.sockets[0].getsockname(), state, limiter, observer)
        for connection in list(state.connections):
            connection.shutdown()
        await asyncio.wait_for(asyncio.gather(*state.tasks, return_exceptions=True), _PATIENCE_S)
    await until(lambda: not state.connections)


async def until(true: Any) -> None:
    """Wait until a condition holds that other tasks bring about."""
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while not true():
        assert asyncio.get_running_loop().time() < end, "it never became true"
        await asyncio.sleep(0.005)


def statuses(answers: bytes) -> Sequence[int]:
    """The status of each answer in what came."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]
