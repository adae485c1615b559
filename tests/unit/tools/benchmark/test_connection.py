"""HTTP/1.1 as servers speak it: kept alive, chunked, closed, broken off."""

import asyncio
from contextlib import suppress

import pytest

from rerankd.errors import ConfigError
from rerankd.tools.benchmark.connection import Connection, ConnectionLost, Target
from tests.canned_server import canned_server, http_answer, raw_server


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "tls"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, "/v2/rerank", False),
        ("http://host", "host", 80, "/v2/rerank", False),
        ("https://host/prefix/", "host", 443, "/prefix/v2/rerank", True),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, path: str, *, tls: bool) -> None:
    assert Target.from_url(url) == Target(host=host, port=port, path=path, tls=tls)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not the URL of a server"):
        Target.from_url(url)


async def test_an_answer_is_read_whole_with_the_headers_that_matter() -> None:
    async def answer(body: bytes) -> bytes:
        return http_answer(429, body[::-1], "Retry-After: 3", "Server-Timing: total;dur=1", "X-Other: y")

    async with canned_server(answer) as url:
        connection = Connection(Target.from_url(url))
        got = await connection.post(b"abc")
        connection.close()
    assert (got.status, got.body) == (429, b"cba")
    assert got.headers == {b"retry-after": b"3", b"server-timing": b"total;dur=1"}


async def test_headers_of_the_target_are_sent() -> None:
    seen = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http_answer())

    async with raw_server(serve) as url:
        target = Target.from_url(url, headers={"Authorization": "Bearer k"})
        await Connection(target).post(b"xy")
    head = (await seen).decode()
    assert head.startswith("POST /v2/rerank HTTP/1.1\r\n")
    assert "\r\nAuthorization: Bearer k\r\n" in head
    assert "\r\nContent-Length: 2\r\n" in head


async def test_chunked_answers_that_arrive_in_pieces_are_put_together() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (
            b"HTTP/1.1 200 OK\r\nTransfer-En",
            b"coding: chunked\r\n\r\n3\r\nabc\r\n",
            b"2\r\nde\r\n0\r\n\r\n",
        ):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    async with raw_server(serve) as url:
        assert (await Connection(Target.from_url(url)).post(b"")).body == b"abcde"


async def test_a_connection_that_the_server_closes_after_each_answer_is_opened_again() -> None:
    async def answer(body: bytes) -> bytes:
        return http_answer(200, body, "Connection: close")

    async with canned_server(answer) as url:
        connection = Connection(Target.from_url(url))
        bodies = [(await connection.post(b"%d" % number)).body for number in range(3)]
    assert bodies == [b"0", b"1", b"2"]


async def test_an_idle_connection_that_was_closed_meanwhile_costs_no_request() -> None:
    answers = iter([http_answer(200, b"first"), b"", http_answer(200, b"third")])

    async def answer(_: bytes) -> bytes:
        return next(answers)

    async with canned_server(answer) as url:
        connection = Connection(Target.from_url(url))
        bodies = [(await connection.post(b"")).body for _ in range(2)]
        connection.close()
    assert bodies == [b"first", b"third"]


@pytest.mark.parametrize(
    "broken", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc"], ids=["nothing", "part"]
)
async def test_an_answer_that_breaks_off_is_a_lost_connection(broken: bytes) -> None:
    async def answer(_: bytes) -> bytes:
        return broken

    async with canned_server(answer) as url:
        with pytest.raises(ConnectionLost):
            await Connection(Target.from_url(url)).post(b"")


async def test_a_cancelled_request_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionResetError):
            await reader.read(1)
        gone.set()

    async with raw_server(serve) as url:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await Connection(Target.from_url(url)).post(b"")
        async with asyncio.timeout(5):
            await gone.wait()
