"""What somebody sends who means harm: refused with a reason, in bounded memory, and nobody else notices.

`pytest -s` on this file prints the table of docs/operations.md.
"""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready

pytestmark = pytest.mark.slow

_MIB = 2**20
_MAX_BODY = 16 * _MIB
_MAX_HELD = 32 * _MIB
_TIMEOUT_S = 2.0
# By how much memory may rise: some bodies, and four million values of some 60 bytes. Everything that follows happens to
# one server, so that what the allocator keeps of one attack counts against the next.
_PEAK = 4 * _MAX_BODY + 256 * _MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    registry = write_registry(tmp_path_factory.mktemp("registry"), [{"name": "tiny", "path": tiny_model}])
    with rerankd_server(
        tmp_path_factory.mktemp("server"),
        registry,
        RERANKD_MAX_BODY_BYTES=str(_MAX_BODY),
        RERANKD_MAX_HELD_BYTES=str(_MAX_HELD),
        RERANKD_HEAD_TIMEOUT_S=str(_TIMEOUT_S),
        RERANKD_BODY_TIMEOUT_S=str(_TIMEOUT_S),
    ) as server:
        wait_until_ready(server)
        _ask(server)
        yield server


@pytest.fixture(autouse=True)
def _unharmed(server: Server) -> Iterator[None]:
    """After every attack: the service answers, is right, and saw no error of its own."""
    logged = server.log.stat().st_size
    yield
    _ask(server)
    assert b'"ERROR"' not in server.log.read_bytes()[logged:]


def _ask(server: Server) -> None:
    answer = httpx.post(f"{server.url}/rerank", json={"query": "capital", "documents": ["Paris", "list"]}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 2


@pytest.fixture(scope="module")
def idle_bytes(server: Server) -> int:
    """The server's memory before the first attack."""
    return server.resident_bytes()


@dataclass(slots=True)
class _Memory:
    """How far the server's memory rose above that of the idle one."""

    idle: int
    before: int
    peak: int

    @property
    def rise(self) -> int:
        return self.peak - self.idle


@contextmanager
def _memory(server: Server, idle_bytes: int) -> Iterator[_Memory]:
    memory = _Memory(idle=idle_bytes, before=server.resident_bytes(), peak=0)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            memory.peak = max(memory.peak, server.resident_bytes())

    watching = threading.Thread(target=watch)
    memory.peak = memory.before
    watching.start()
    try:
        yield memory
    finally:
        stop.set()
        watching.join()


def _post(server: Server, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v2/rerank", content=body, headers=headers, timeout=60)


def _documents(item: bytes, *, size: int = _MAX_BODY) -> bytes:
    """A request body just within the bound, whose documents are `item` again and again."""
    head, tail = b'{"query": "q", "documents": [', b"]}"
    count = (size - len(head) - len(tail) + 1) // (len(item) + 1)
    return head + b",".join([item] * count) + tail


_BODIES: list[tuple[str, Callable[[], bytes], int]] = [
    ("one byte too many, declared", lambda: b" " * (_MAX_BODY + 1), 413),
    ("no JSON", lambda: b"\xff" * _MAX_BODY, 400),
    ("nothing", lambda: b"", 400),
    ("a million brackets", lambda: b"[" * 1_000_000, 400),
    ("objects in objects, 100,000 deep", lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    ("a document 1,000 deep", lambda: _documents(b"[" * 1000 + b"]" * 1000, size=3000), 400),
    ("as many empty lists as fit", lambda: _documents(b"[]"), 413),
    ("as many empty objects as are read", lambda: _documents(b"{}", size=440_000), 413),
    ("as many numbers as are read", lambda: _documents(b"1e9", size=2_900_000), 413),
    ("as many empty documents as are read", lambda: _documents(b'""', size=2_200_000), 413),
    ("100,000 documents", lambda: _documents(b'"a document"', size=1_300_030), 413),
    ("one document of the whole body", lambda: _documents(b'"' + b"a b " * (_MAX_BODY // 4 - 20) + b'"'), 200),
    ("a query of the whole body", lambda: b'{"documents": ["a"], "query": "' + b"q" * (_MAX_BODY - 40) + b'"}', 413),
    ("documents that are a string", lambda: b'{"query": "q", "documents": "text"}', 400),
    ("documents that are numbers", lambda: b'{"query": "q", "documents": [1, 2.5, true, null]}', 400),
    ("a query that is an object", lambda: b'{"query": {"words": "q"}, "documents": ["a"]}', 400),
    ("top_n of 400 digits", lambda: b'{"query": "q", "documents": ["a"], "top_n": 1%b}' % (b"0" * 400), 400),
    ("NUL characters in texts", lambda: b'{"query": "q\\u0000", "documents": ["a\\u0000b"]}', 200),
    ("NUL bytes around the JSON", lambda: b'\x00{"query": "q", "documents": ["a"]}\x00', 400),
    ("half a surrogate pair", lambda: b'{"query": "\\ud800", "documents": ["a"]}', 400),
    ("a surrogate as bytes", lambda: b'{"query": "\xed\xa0\x80", "documents": ["a"]}', 400),
    ("UTF-16", lambda: '{"query": "q", "documents": ["a"]}'.encode("utf-16"), 400),
    ("a key twice; the last one counts", lambda: b'{"query": 1, "query": "q", "documents": ["a"]}', 200),
]


@pytest.mark.parametrize(("name", "body", "status"), _BODIES, ids=[name for name, _, _ in _BODIES])
def test_a_hostile_body_gets_its_answer_in_bounded_memory(
    server: Server, idle_bytes: int, name: str, body: Callable[[], bytes], status: int
) -> None:
    content = body()
    with _memory(server, idle_bytes) as memory:
        answer = _post(server, content)
    _row(name, len(content), answer.status_code, memory)
    assert answer.status_code == status, answer.text[:300]
    if status != 200:
        assert answer.json()["message"]
    assert memory.rise < _PEAK


def test_a_gzip_bomb_is_not_unpacked(server: Server, idle_bytes: int) -> None:
    bomb = gzip.compress(b" " * (100 * _MIB))
    with _memory(server, idle_bytes) as memory:
        answer = _post(server, bomb, **{"Content-Encoding": "gzip"})
    _row("100 MiB of blanks, as gzip", len(bomb), answer.status_code, memory)
    assert answer.status_code == 400
    assert memory.rise < _PEAK


@contextmanager
def _connection(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        yield connection


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def _trickle(connection: socket.socket, piece: bytes, *, seconds: float) -> bytes:
    """Send a piece every tenth of a second until the server answers or closes; what it said."""
    connection.settimeout(0.1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            connection.sendall(piece)
            return connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return b""
    raise AssertionError(f"still open after {seconds} s")


_HEAD = b"POST /v2/rerank HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.timed
@pytest.mark.parametrize(
    ("name", "start", "piece", "status"),
    [
        ("a head that trickles", _HEAD, b"X: y\r\n", 408),
        ("a declared body that trickles", _HEAD + b"Content-Length: 5000\r\n\r\n", b" ", 408),
        ("a chunked body that trickles", _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 408),
        ("trailers that trickle", _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X: y\r\n", 408),
        ("the second head of a connection", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nX: ", 408),
    ],
)
def test_what_trickles_is_given_up_in_time(
    server: Server, idle_bytes: int, name: str, start: bytes, piece: bytes, status: int
) -> None:
    with _memory(server, idle_bytes) as memory, _connection(server) as connection:
        connection.sendall(start)
        if start.startswith(b"GET"):
            first = b""
            while b"}" not in first:
                first += connection.recv(65536)
            assert _status(first) == 200
            connection.sendall(piece)
            piece = b"y"
        began = time.monotonic()
        answer = _trickle(connection, piece, seconds=3 * _TIMEOUT_S)
        took = time.monotonic() - began
    _row(name, len(start), _status(answer), memory)
    assert _status(answer) == status
    assert _TIMEOUT_S * 0.8 < took < _TIMEOUT_S * 2.5


def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    with _connection(server) as connection:
        connection.settimeout(3 * _TIMEOUT_S)
        assert connection.recv(1) == b""


def test_a_head_without_end_is_refused_after_64_kib(server: Server, idle_bytes: int) -> None:
    with _memory(server, idle_bytes) as memory, _connection(server) as connection:
        sent = 0
        connection.sendall(_HEAD + b"X: ")
        with suppress(OSError):
            while sent < 64 * _MIB:
                connection.sendall(b"y" * 16_384)
                sent += 16_384
        answer = b""
        with suppress(OSError):
            answer = connection.recv(65536)
    _row("a head without end", sent, _status(answer), memory)
    assert sent < 16 * _MIB
    assert memory.rise < _PEAK


def test_a_body_that_goes_on_after_its_refusal_is_thrown_away_and_then_cut_off(server: Server, idle_bytes: int) -> None:
    chunk = b"%x\r\n" % _MIB + b" " * _MIB + b"\r\n"
    with _memory(server, idle_bytes) as memory, _connection(server) as connection:
        connection.sendall(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * (_MAX_BODY // _MIB + 1))
        status = _status(connection.recv(65536))
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 3 * _TIMEOUT_S:
                connection.sendall(b"1\r\n \r\n")
                time.sleep(0.05)
        took = time.monotonic() - began
    _row("a chunked body without end", _MAX_BODY, status, memory)
    assert status == 413
    assert took < 2.5 * _TIMEOUT_S
    assert memory.rise < _PEAK


def test_many_large_bodies_at_once_are_taken_up_to_their_bound_and_the_rest_is_told_to_come_back(
    server: Server,
    idle_bytes: int,
) -> None:
    """Each stops one byte before its end, so that all are held at the same time."""
    body = _documents(b'"a document of some words"', size=_MAX_BODY - 1000)
    request = _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1]
    refusals: list[bytes] = []

    def send() -> None:
        with _connection(server) as connection, suppress(OSError):
            connection.sendall(request)
            refusals.append(connection.recv(65536))

    with _memory(server, idle_bytes) as memory, ThreadPoolExecutor(16) as clients:
        for _ in range(16):
            clients.submit(send)
    statuses = sorted(_status(answer) for answer in refusals)
    _row("16 large bodies at once, 14 of them refused", len(body) * 16, 429, memory)
    assert set(statuses) <= {408, 429}, "on a busy machine a client may leave before it hears 408"
    assert statuses.count(429) >= 12
    refused = next(answer for answer in refusals if _status(answer) == 429)
    assert b"\r\nretry-after: 1\r\n" in refused.lower()
    assert memory.rise < _PEAK


def test_refusals_are_counted(server: Server) -> None:
    def counted() -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
        wanted = 'rerank_requests_total{dialect="cohere-v2",model="none",status="413"}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))

    before = counted()
    assert _post(server, b" " * (_MAX_BODY + 1)).status_code == 413
    assert counted() == before + 1


def _row(name: str, size: int, status: int, memory: _Memory) -> None:
    """One row of the table."""
    own = (memory.peak - memory.before) / _MIB
    print(f"| {name} | {size:,} | {status} | {own:.0f} MiB | {memory.rise / _MIB:.0f} MiB |")  # noqa: T201 - its purpose


def test_deep_json_is_sent_back_as_it_came(server: Server) -> None:
    """Far deeper than what is built here could be written."""
    deep = b"[" * 500 + b"]" * 500
    body = b'{"query": "q", "return_documents": true, "documents": [{"text": "a", "metadata": %b}]}' % deep
    answer = _post(server, body)
    assert answer.status_code == 200, answer.text
    assert answer.content.count(deep) == 2
