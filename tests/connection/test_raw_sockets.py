"""What comes over a socket byte by byte: each request is one request, and nothing else is.

A proxy that forwards requests and a server that answers them must see the same ones; where the bytes leave room for two
readings, the right answer is a refusal and the end of the connection. Every protocol class that we ship goes through.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rerankd.api.transport.connection import Connection
from rerankd.api.transport.request_reader import Head, Refusal, RequestReader
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import OpenApi
from tests.fakes import FakeService
from tests.raw_sockets import Echo, RawServer, raw_server, statuses, until

PROTOCOLS = [Connection]
_HOST = b"Host: x\r\n"
_CLOSE = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(params=PROTOCOLS, ids=lambda protocol: protocol.__name__)
async def server(request: pytest.FixtureRequest, echo: Echo) -> AsyncIterator[RawServer]:
    async with raw_server(echo, request.param) as server:
        yield server


def _post(*headers: bytes, body: bytes = b"", version: bytes = b"1.1", path: bytes = b"/") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/%b\r\n%b%b\r\n%b" % (path, version, _HOST, lines, body)


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def _chunks(body: bytes, *, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"%x\r\n%b\r\n%b" % (len(body), body, end)


def _said(answers: bytes) -> list[dict[str, Any]]:
    """What the application was asked, by its answers."""
    return [
        json.loads(part[: part.index(b"}") + 1]) for part in answers.split(b"\r\n\r\n")[1:] if part.startswith(b"{")
    ]


_OFFERS = [
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
    (b"Connection: Upgrade", b"Upgrade: TLS/1.2"),
    (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Connection: keep-alive, upgrade", b"Upgrade: anything/9, else"),
    (b"Upgrade: h2c",),
]


@pytest.mark.parametrize("offer", _OFFERS, ids=lambda offer: offer[-1].decode())
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("content", [b"hello", _SMUGGLED, b""], ids=["text", "a request", "nothing"])
@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "byte by byte"])
async def test_an_offer_to_upgrade_is_ignored_and_its_body_is_a_body(
    server: RawServer, echo: Echo, offer: tuple[bytes, ...], chunked: bool, content: bytes, pieces: bool
) -> None:
    framing, body = (
        (b"Transfer-Encoding: chunked", _chunks(content) if content else b"0\r\n\r\n")
        if chunked
        else (
            _length(content),
            content,
        )
    )
    request = _post(*offer, framing, body=body, path=b"/first") + _CLOSE
    async with server.connected() as client:
        for piece in [request[at : at + 1] for at in range(len(request))] if pieces else [request]:
            await client.send(piece)
        answers = await client.rest()
    assert statuses(answers) == [200, 200]
    assert [said["body"] for said in _said(answers)] == [content.decode(), ""]
    assert echo.asked == ["/first", "/last"]


@pytest.mark.parametrize("offer", _OFFERS, ids=lambda offer: offer[-1].decode())
async def test_an_offer_without_a_body_is_ignored_too(server: RawServer, echo: Echo, offer: tuple[bytes, ...]) -> None:
    head = b"GET /first HTTP/1.1\r\n" + _HOST + b"\r\n".join(offer) + b"\r\n\r\n"
    assert statuses(await server.ask(head + _CLOSE)) == [200, 200]
    assert echo.asked == ["/first", "/last"]


# What is taken: the request's bytes, the body that arrives.
_TAKEN: list[tuple[str, bytes, str]] = [
    ("a length", _post(_length(b"hello"), body=b"hello"), "hello"),
    ("no length", _post(), ""),
    ("chunks", _post(b"Transfer-Encoding: chunked", body=_chunks(b"hel", end=_chunks(b"lo"))), "hello"),
    ("chunks in capitals", _post(b"TRANSFER-ENCODING: Chunked", body=b"A\r\n0123456789\r\n0\r\n\r\n"), "0123456789"),
    ("zeros before a size", _post(b"Transfer-Encoding: chunked", body=b"0005\r\nhello\r\n000\r\n\r\n"), "hello"),
    ("extensions", _post(b"Transfer-Encoding: chunked", body=b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n'), "hello"),
    (
        "trailers",
        _post(b"Transfer-Encoding: chunked", body=_chunks(b"hello", end=b"0\r\nX: y\r\nZ: z\r\n\r\n")),
        "hello",
    ),
    ("a body that is a request", _post(_length(_SMUGGLED), body=_SMUGGLED), _SMUGGLED.decode()),
    ("chunks that are a request", _post(b"Transfer-Encoding: chunked", body=_chunks(_SMUGGLED)), _SMUGGLED.decode()),
    ("a blank behind a length", _post(b"Content-Length: 35 ", body=_SMUGGLED[:35]), _SMUGGLED[:35].decode()),
    ("a tabulator behind a length", _post(b"Content-Length: 35\t", body=_SMUGGLED[:35]), _SMUGGLED[:35].decode()),
    ("blanks behind a coding", _post(b"Transfer-Encoding:chunked  ", body=_chunks(_SMUGGLED)), _SMUGGLED.decode()),
    ("two blanks before the target", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", ""),
    ("an underscore is no hyphen", _post(b"Content_Length: 5", b"Transfer_Encoding: chunked"), ""),
    ("blank lines before it", b"\r\n\r\n" + _post(_length(b"a"), body=b"a"), "a"),
    ("bytes beyond ASCII in a header", _post(b"X: \xe9\xff", _length(b"a"), body=b"a"), "a"),
    (
        "a body of a GET",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 35\r\n\r\n" + _SMUGGLED,
        _SMUGGLED[:35].decode(),
    ),
]


@pytest.mark.parametrize(("request_", "body"), [case[1:] for case in _TAKEN], ids=[case[0] for case in _TAKEN])
async def test_what_is_framed_one_way_only_is_taken(server: RawServer, echo: Echo, request_: bytes, body: str) -> None:
    answers = await server.ask(request_ + _CLOSE)
    assert statuses(answers) == [200, 200]
    assert _said(answers)[0]["body"] == body
    assert echo.asked == ["/", "/last"]


def test_white_space_behind_a_value_is_no_part_of_it() -> None:
    reader = RequestReader()
    reader.feed(_post(b"Expect: 100-continue\t ", b"X-Request-ID: \t a b \t", b"Connection: close\t"))
    head = reader.next_event()
    assert isinstance(head, Head)
    assert head.expects_continue
    assert not head.keep_alive
    assert dict(head.headers)[b"x-request-id"] == b"a b"


@pytest.mark.parametrize("target", [b"http:///rerank", b"http://a:99999/rerank"])
def test_a_target_that_is_no_url_is_called_that(target: bytes) -> None:
    reader = RequestReader()
    reader.feed(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)
    refusal = reader.next_event()
    assert isinstance(refusal, Refusal)
    assert "target is not a valid URL" in refusal.message


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_rtsp_behind_a_body_in_chunks_is_no_http(server: RawServer, echo: Echo, pieces: int) -> None:
    """In chunks a body's end is not known before it is read: the next request begins amid what the parser is given."""
    sent = _post(b"Transfer-Encoding: chunked", body=_chunks(b"hello")) + b"GET /a RTSP/1.0\r\n\r\n" + _CLOSE
    async with server.connected() as client:
        for at in range(0, len(sent), pieces):
            await client.send(sent[at : at + pieces])
        answers = await client.rest()
    assert statuses(answers) == [200, 505]
    assert echo.asked == ["/"]


_CHUNKED = b"Transfer-Encoding: chunked"
# What is refused: the request's bytes, the status.
_REFUSED: list[tuple[str, bytes, int]] = [
    ("both framings", _post(b"Content-Length: 4", _CHUNKED, body=_chunks(b"hello")), 400),
    ("both framings, the other way round", _post(_CHUNKED, b"Content-Length: 4", body=_chunks(b"hello")), 400),
    ("two equal lengths", _post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), 400),
    ("two lengths", _post(b"Content-Length: 5", b"Content-Length: 0", body=b"hello"), 400),
    ("a list of lengths", _post(b"Content-Length: 5, 5", body=b"hello"), 400),
    ("a signed length", _post(b"Content-Length: +5", body=b"hello"), 400),
    ("a negative length", _post(b"Content-Length: -5", body=b"hello"), 400),
    ("a hexadecimal length", _post(b"Content-Length: 0x5", body=b"hello"), 400),
    ("an empty length", _post(b"Content-Length: ", body=b"hello"), 400),
    ("a length of 30 digits", _post(b"Content-Length: " + b"9" * 30, body=b"hello"), 400),
    ("chunked, then identity", _post(b"Transfer-Encoding: chunked, identity", body=_chunks(b"hello")), 400),
    ("identity, then chunked", _post(b"Transfer-Encoding: identity, chunked", body=_chunks(b"hello")), 501),
    ("gzip, then chunked", _post(b"Transfer-Encoding: gzip, chunked", body=_chunks(b"hello")), 501),
    ("chunked twice", _post(_CHUNKED, _CHUNKED, body=_chunks(b"hello")), 400),
    ("two codings in two headers", _post(b"Transfer-Encoding: identity", _CHUNKED, body=_chunks(b"hello")), 501),
    ("two codings the other way round", _post(_CHUNKED, b"Transfer-Encoding: identity", body=_chunks(b"hello")), 400),
    ("an unknown coding", _post(b"Transfer-Encoding: xchunked", body=_chunks(b"hello")), 501),
    ("an empty coding", _post(b"Transfer-Encoding: ", body=_chunks(b"hello")), 400),
    ("a coding behind a tabulator", _post(b"Transfer-Encoding: \x0bchunked", body=_chunks(b"hello")), 400),
    ("a tabulator behind a coding", _post(b"Transfer-Encoding: chunked\t", body=_chunks(_SMUGGLED)), 501),
    ("RTSP", b"POST /a RTSP/1.1\r\nHost: x\r\n\r\n", 505),
    ("RTSP 1.0", b"GET /health RTSP/1.0\r\n\r\n", 505),
    ("ICE", b"SOURCE /x ICE/1.0\r\n\r\n", 505),
    ("RTSP, and HTTP in a header", b"GET /a RTSP/1.1\r\nHost: x\r\nX: GET /a HTTP/1.1\r\n\r\n", 505),
    ("a target without a host", b"GET http:///rerank HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a port beyond all ports", b"GET http://a:99999/rerank HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a blank before the colon", _post(b"Transfer-Encoding : chunked", body=_chunks(b"hello")), 400),
    ("a coding in HTTP/1.0", _post(_CHUNKED, body=_chunks(b"hello"), version=b"1.0"), 400),
    ("bare line feeds", b"GET /a HTTP/1.1\nHost: x\n\n", 400),
    ("a bare line feed after a header", b"GET /a HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    ("bare carriage returns", b"GET /a HTTP/1.1\rHost: x\r\r", 400),
    ("a carriage return in a value", _post(b"A: b\rTransfer-Encoding: chunked"), 400),
    ("a folded header", _post(b"A: b\r\n c"), 400),
    ("a folded length", _post(b"Content-Length:\r\n 5", body=b"hello"), 400),
    ("a folded first header", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    ("NUL in a value", _post(b"A: b\x00c"), 400),
    ("a control character in a value", _post(b"A: b\x01c"), 400),
    ("NUL in a name", _post(b"A\x00: b"), 400),
    ("a byte beyond ASCII in a name", _post(b"A\xe9: b"), 400),
    ("an empty name", _post(b": b"), 400),
    ("no colon", _post(b"A"), 400),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two hosts", _post(b"Host: y"), 400),
    ("HTTP/0.9", b"GET /\r\n\r\n", 505),
    ("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 400),
    ("a method in small letters", b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40, 400),
    ("CONNECT", b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    ("a blank in the target", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a tabulator in the target", b"GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a byte beyond ASCII in the target", b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("NUL in the target", b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("a fragment in the target", b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("no path", b"GET x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
]


@pytest.mark.parametrize(("request_", "status"), [case[1:] for case in _REFUSED], ids=[case[0] for case in _REFUSED])
async def test_what_could_be_read_in_two_ways_is_refused(
    server: RawServer, echo: Echo, request_: bytes, status: int
) -> None:
    """One answer, in the body that every client can read; whatever follows is not run."""
    answers = await server.ask(request_ + _SMUGGLED)
    assert statuses(answers) == [status]
    head, _, body = answers.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/json" in head
    assert set(json.loads(body)) == {"message", "detail", "error", "error_type"}
    assert not echo.asked
    assert server.refused() == ["malformed"]


_BAD_CHUNKS: list[tuple[str, bytes]] = [
    ("no size", b"zz\r\nhello\r\n0\r\n\r\n"),
    ("a negative size", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("a size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("a blank behind the size", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("a size beyond 64 bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("a line feed behind the size", b"5\nhello\r\n0\r\n\r\n"),
    ("a line feed in an extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("a carriage return in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("a chunk longer than its size", b"5\r\nhelloXX0\r\n\r\n"),
    ("a line feed behind a chunk", b"5\r\nhello\n0\r\n\r\n"),
    ("a length among the trailers", b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n"),
]


@pytest.mark.parametrize("body", [case[1] for case in _BAD_CHUNKS], ids=[case[0] for case in _BAD_CHUNKS])
async def test_a_body_that_breaks_off_is_one_answer_and_the_end(server: RawServer, echo: Echo, body: bytes) -> None:
    answers = await server.ask(_post(_CHUNKED, body=body) + _SMUGGLED)
    assert statuses(answers) == [400]
    assert "/smuggled" not in echo.asked
    assert echo.finished == []


async def test_pipelined_requests_are_answered_in_their_order_one_at_a_time(server: RawServer, echo: Echo) -> None:
    async with server.connected() as client:
        await client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + _post(_length(b"a"), body=b"a") + _CLOSE)
        await until(lambda: echo.asked)
        await asyncio.sleep(0.05)
        assert echo.asked == ["/slow"]
        echo.go.set()
        answers = await client.rest()
    assert [said["path"] for said in _said(answers)] == ["/slow", "/", "/last"]


async def test_what_is_refused_is_answered_after_what_came_before_it(server: RawServer, echo: Echo) -> None:
    async with server.connected() as client:
        await client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n")
        await until(lambda: echo.asked)
        echo.go.set()
        answers = await client.rest()
    assert statuses(answers) == [200, 400]
    assert _said(answers)[0]["path"] == "/slow"


async def test_nothing_is_run_after_the_request_that_closes(server: RawServer, echo: Echo) -> None:
    assert statuses(await server.ask(_CLOSE + _SMUGGLED)) == [200]
    assert echo.asked == ["/last"]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://other/a?b", "/a"),
        (b"http://other", "/"),
        (b"//other/a", "//other/a"),
        (b"/%61%2f", "/a/"),
        (b"*", "*"),
    ],
)
async def test_a_target_has_one_path(server: RawServer, echo: Echo, target: bytes, path: str) -> None:
    await server.ask(b"OPTIONS %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)
    assert echo.asked == [path]


@pytest.mark.parametrize("connection", [b"", b"Connection: keep-alive\r\n"])
async def test_http_1_0_is_answered_and_closed(server: RawServer, connection: bytes) -> None:
    answers = await server.ask(b"GET / HTTP/1.0\r\n%b\r\n" % connection)
    assert statuses(answers) == [200]
    assert b"\r\nconnection: close\r\n" in answers


async def test_head_has_a_length_and_no_body(server: RawServer) -> None:
    answers = await server.ask(b"HEAD /first HTTP/1.1\r\nHost: x\r\n\r\n" + _CLOSE)
    first, second, body = answers.split(b"\r\n\r\n")
    assert statuses(first) == statuses(second) == [200]
    assert b"content-length: 0" not in first
    assert json.loads(body)["path"] == "/last"


async def test_a_client_that_expects_100_continue_gets_it_once(server: RawServer) -> None:
    async with server.connected() as client:
        await client.send(_post(b"Expect: 100-continue", _length(b"hello")))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        status, body = await client.answer()
    assert (status, json.loads(body)["body"]) == (200, "hello")


async def test_a_client_that_has_sent_its_body_gets_no_100_continue(server: RawServer) -> None:
    answers = await server.ask(_post(b"Expect: 100-continue", _length(b"hello"), body=b"hello") + _CLOSE)
    assert statuses(answers) == [200, 200]


async def test_a_body_after_an_answer_without_100_continue_is_not_taken_for_a_request(
    server: RawServer, echo: Echo
) -> None:
    """The body was never asked for: the next request may come in its place, and would be taken for it."""
    async with server.connected() as client:
        await client.send(_post(b"Expect: 100-continue", _length(b"hello"), path=b"/early"))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"\r\nconnection: close\r\n" in head
        await client.send(_SMUGGLED)
        assert statuses(await client.rest()) == []
    assert echo.asked == ["/early"]


async def test_the_rest_of_a_body_that_was_answered_early_is_not_a_request(server: RawServer, echo: Echo) -> None:
    async with server.connected() as client:
        await client.send(_post(_length(_SMUGGLED + b"."), path=b"/early"))
        assert (await client.answer())[0] == 200
        await client.send(_SMUGGLED + b"." + _CLOSE)
        assert (await client.answer())[0] == 200
    assert echo.asked == ["/early", "/last"]


async def test_a_client_that_disconnects_within_its_body_gets_no_answer(server: RawServer, echo: Echo) -> None:
    async with server.connected() as client:
        await client.send(_post(_length(b"hello"), body=b"hel"))
        await until(lambda: echo.asked)
    await until(lambda: not server.state.connections)
    assert (echo.gone, echo.finished) == (["/"], [])


@pytest.mark.parametrize("behind", [b"", _SMUGGLED], ids=["alone", "with a pipelined request"])
async def test_a_client_that_disconnects_stops_the_work_on_its_request(
    server: RawServer, echo: Echo, behind: bytes
) -> None:
    async with server.connected() as client:
        await client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + behind)
        await until(lambda: echo.asked)
    await until(lambda: echo.gone)
    assert echo.asked == ["/slow"]


async def test_a_half_closed_connection_still_gets_answers_that_need_no_work(server: RawServer) -> None:
    async with server.connected() as client:
        await client.send(_post(_length(b"a"), body=b"a") + b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
        client.writer.write_eof()
        assert [said["path"] for said in _said(await client.rest())] == ["/", "/b"]


@pytest.mark.parametrize(("size", "status"), [(60_000, 200), (70_000, 431)])
async def test_a_head_is_bounded(server: RawServer, size: int, status: int) -> None:
    answers = await server.ask(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"y" * size + b"\r\n\r\n")
    assert statuses(answers) == [status]
    assert server.refused() == ([] if status == 200 else ["large_head"])


async def test_a_head_without_end_is_refused_at_its_bound(server: RawServer) -> None:
    async with server.connected() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 66_000)
        assert statuses(await client.rest()) == [431]


@pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 431), (5000, 431)])
async def test_headers_are_counted(server: RawServer, count: int, status: int) -> None:
    headers = _HOST + b"Connection: close\r\n" + b"a: b\r\n" * (count - 2)
    assert statuses(await server.ask(b"GET / HTTP/1.1\r\n" + headers + b"\r\n")) == [status]


@pytest.mark.parametrize(("size", "status"), [(8192, 200), (8193, 414)])
async def test_the_target_is_bounded(server: RawServer, size: int, status: int) -> None:
    target = b"/".ljust(size, b"y")
    answers = await server.ask(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(answers) == [status]


@pytest.mark.parametrize(
    "part",
    [b"X: y\r\n", b"X: " + b"y" * 2**17, b";" + b"a" * 2**17, b"1;" + b"a" * 200 + b"\r\nx\r\n"],
    ids=["trailers", "a trailer without end", "an extension without end", "chunks of little but extensions"],
)
async def test_what_surrounds_chunks_is_bounded(server: RawServer, part: bytes) -> None:
    opening = b"" if part.startswith(b"1") else b"0"
    opening += b"" if part.startswith((b";", b"1")) else b"\r\n"
    async with server.connected() as client:
        await client.send(_post(_CHUNKED, body=opening + part * (2**18 // len(part) + 1)))
        assert statuses(await client.rest()) == [400]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stock_clients_upgrade_reaches_the_application(open_api: OpenApi, protocol: type[Connection]) -> None:
    """As the JDK's HttpClient sends its first request to every server."""
    body = json.dumps({"query": "q", "documents": ["a", "b c"]}).encode()
    async with open_api(FakeService(activation=sigmoid)) as api, raw_server(api.app, protocol) as server:
        answer = await server.ask(_post(*_OFFERS[0], _length(body), body=body, path=b"/v2/rerank") + _CLOSE)
    assert statuses(answer) == [200, 404]
    assert b'"relevance_score"' in answer
