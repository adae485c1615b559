"""One reading of a connection's bytes: however they are cut into pieces, and as another careful parser reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.api.transport.request_reader import EndOfRequest, Head, Refusal, RequestReader

_STARTS = [
    b"GET / HTTP/1.1",
    b"POST /a?b HTTP/1.1",
    b"POST /a HTTP/1.0",
    b"HEAD http://h/c HTTP/1.1",
    b"PUT * HTTP/1.1",
]
_HEADERS = [
    b"Host: x",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"content-length: 37",
    b"Content-Length: 5, 5",
    b"Content-Length : 5",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding: CHUNKED",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Connection: Upgrade",
    b"Connection: upgrade, HTTP2-Settings",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Upgrade: h2c",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"A: b",
    b" folded",
    b"A: \xff",
    b"A: \x00",
]
_BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n1\r\nz\r\n0\r\nA: b\r\n\r\n",
    b"0\r\n\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    b"25\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n..\r\n0\r\n\r\n",
    b"\r\n",
    b"\n",
    b"x",
]


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    lines = [draw(st.sampled_from(_STARTS)), b"Host: x", *draw(st.lists(st.sampled_from(_HEADERS), max_size=4))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + draw(st.sampled_from(_BODIES))


_streams = st.lists(_requests(), min_size=1, max_size=3).map(b"".join)


@dataclass
class _Reading:
    """Method and body of each request that was read whole; whether one was refused, and whether nothing may follow."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)
    refused: bool = False
    closed: bool = False


def _ours(pieces: Sequence[bytes]) -> _Reading:
    reading, reader = _Reading(), RequestReader()
    method, body, keep_alive = "", b"", True
    for piece in pieces:
        reader.feed(piece)
        while not reading.closed:
            event = reader.next_event()
            if event is None:
                if not reader.waiting_bytes:
                    break
            elif isinstance(event, Head):
                method, body, keep_alive = event.method, b"", event.keep_alive
            elif isinstance(event, EndOfRequest):
                reading.requests.append((method, body))
                reading.closed = not keep_alive
            elif isinstance(event, Refusal):
                reading.refused = reading.closed = True
            else:
                body += event
    return reading


def _h11s(stream: bytes) -> _Reading:
    reading, connection = _Reading(), h11.Connection(h11.SERVER)
    connection.receive_data(stream)
    method, body = "", b""
    while not reading.closed:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            reading.refused = reading.closed = True
            return reading
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return reading
        if isinstance(event, h11.Request):
            method, body = event.method.decode(), b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            reading.requests.append((method, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            reading.closed = connection.our_state is not h11.DONE
            if not reading.closed:
                connection.start_next_cycle()
    return reading


@settings(deadline=None, max_examples=300)
@given(stream=_streams, cuts=st.lists(st.integers(0, 400), max_size=5))
def test_it_does_not_matter_how_the_bytes_are_cut(stream: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(bounds)]
    assert _ours(pieces) == _ours([stream])
    assert _ours([stream[at : at + 1] for at in range(len(stream))]) == _ours([stream])


@settings(deadline=None, max_examples=1000)
@given(stream=_streams)
def test_two_parsers_that_take_a_stream_read_the_same_requests(stream: bytes) -> None:
    """A request that only one of them sees is one that a proxy would not see: that is how requests are smuggled."""
    ours, other = _ours([stream]), _h11s(stream)
    both = min(len(ours.requests), len(other.requests))
    assert ours.requests[:both] == other.requests[:both]
    if len(ours.requests) < len(other.requests):
        assert ours.closed
    if len(ours.requests) > len(other.requests):
        assert other.closed
