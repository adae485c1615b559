"""Connections on a real socket, over an application that answers as soon as it is asked to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.api.connection import BoundedProtocol

_TIMEOUT_S = 0.3
_GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, but of /early nothing; say how many headers there were."""
    more = scope["path"] != "/early"
    while more:
        message = await receive()
        more = message.get("more_body", False)
    body = f"{len(scope['headers'])} headers.".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def _connected() -> AsyncIterator[Streams]:
    config = uvicorn.Config(_answer, log_config=None, lifespan="off", timeout_keep_alive=60)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedProtocol(config=config, server_state=state, app_state={}, head_timeout_s=_TIMEOUT_S),
        "127.0.0.1",
        0,
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
        await asyncio.gather(*state.tasks)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the server closes; a connection that is reset was closed too."""
    data = b""
    try:
        while piece := await asyncio.wait_for(reader.read(65536), timeout=20):
            data += piece
    except ConnectionError:
        pass
    return data


def _since(start: float) -> float:
    return asyncio.get_running_loop().time() - start


async def test_a_client_that_says_nothing_is_left() -> None:
    start = asyncio.get_running_loop().time()
    async with _connected() as (reader, _):
        assert await _rest(reader) == b""
    assert _since(start) >= _TIMEOUT_S * 0.9


@pytest.mark.parametrize("before", [b"", _GET], ids=["first", "second"])
async def test_a_head_that_trickles_is_answered_408(before: bytes) -> None:
    async with _connected() as (reader, writer):
        writer.write(before)
        if before:
            await reader.readuntil(b"headers.")
        writer.write(b"GET / HTTP/1.1\r\nX: ")

        async def trickle() -> None:
            while True:
                writer.write(b"y")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        answer = await _rest(reader)
        trickling.cancel()
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n")


@pytest.mark.parametrize(("size", "status"), [(60_000, b"200"), (400_000, b"431")])
async def test_a_head_is_bounded(size: int, status: bytes) -> None:
    async with _connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"y" * size)
        if status == b"200":
            writer.write(b"\r\n\r\n")
        assert (await _rest(reader)).startswith(b"HTTP/1.1 " + status)


async def test_a_connection_lives_longer_than_one_heads_time() -> None:
    async with _connected() as (reader, writer):
        for _ in range(4):
            await asyncio.sleep(_TIMEOUT_S / 2)
            writer.write(_GET)
            assert b" 200 " in await reader.readuntil(b"headers.")


async def test_a_body_that_is_read_is_not_hurried() -> None:
    async with _connected() as (reader, writer):
        writer.write(_CHUNKED)
        for _ in range(4):
            await asyncio.sleep(_TIMEOUT_S / 2)
            writer.write(b"1\r\nx\r\n")
        writer.write(b"0\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"headers.")


async def test_the_rest_of_a_body_that_was_answered_early_is_not_waited_for() -> None:
    async with _connected() as (reader, writer):
        writer.write(_CHUNKED.replace(b" / ", b" /early ") + b"1\r\nx\r\n")
        assert b" 200 " in await reader.readuntil(b"headers.")
        assert await _rest(reader) == b""


async def test_requests_that_come_all_at_once_are_all_answered() -> None:
    async with _connected() as (reader, writer):
        writer.write(_GET * 5)
        assert (await _rest(reader)).count(b" 200 ") == 5


async def test_headers_after_a_body_are_not_kept() -> None:
    async with _connected() as (reader, writer):
        writer.write(_CHUNKED + b"1\r\nx\r\n0\r\n" + b"Y: z\r\n" * 100 + b"\r\n")
        assert b"2 headers." in await reader.readuntil(b"headers.")


async def test_a_client_that_goes_away_is_waited_for_no_longer() -> None:
    async with _connected() as (_, writer):
        writer.write(b"GET / HT")
        await writer.drain()
        writer.close()
        await asyncio.sleep(_TIMEOUT_S * 1.5)
