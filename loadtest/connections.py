"""Measures what hostile connections cost: memory, and the latency of others.

    python -m loadtest.connections [--pipelined 2000] [--connections 2500] [--unread 16]

Against a service with the default bounds of connections, and small ones of bytes: a hundred connections that pipeline
requests for `/health` and for `/openapi.json`; thousands of connections at once; clients that ask for large answers and
do not read them; an API key that sends bodies without their ends. A connection that was there before asks `/health` all
the while: its slowest answer is what others had to wait. Every load is bounded in count and time.
"""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from loadtest.claims import Claim, conclude, parser, run, served
from loadtest.servers import Server

_MIB = 1 << 20
_PIPELINING = 100
_WRITE_TIMEOUT_S = 3.0
_MAX_HELD_BYTES = 32 * _MIB
_UNREAD_BYTES = 12 * _MIB
_BOUNDS = {
    "RERANKD_API_KEYS": "first,second",
    "RERANKD_MAX_BODY_BYTES": str(16 * _MIB),
    "RERANKD_MAX_HELD_BYTES": str(_MAX_HELD_BYTES),
    "RERANKD_WRITE_TIMEOUT_S": str(_WRITE_TIMEOUT_S),
}


@dataclass(slots=True)
class _Watch:
    """The worst that was seen, and the service's memory before."""

    before: int
    most: int
    slowest_ms: float = 0.0

    @property
    def rise_mib(self) -> float:
        return (self.most - self.before) / _MIB

    def claims(self, what: str, *, mib: float, ms: float) -> list[Claim]:
        return [
            Claim(f"{what}: memory, MiB", self.rise_mib, "<=", mib),
            Claim(f"{what}: slowest /health, ms", self.slowest_ms, "<=", ms),
        ]


# In a process of its own, so that it does not wait for what makes the load.
_WATCH = """
import http.client, select, sys, time
peer, slowest_s = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60), 0.0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    sent = time.perf_counter()
    peer.request("GET", "/health")
    peer.getresponse().read()
    slowest_s = max(slowest_s, time.perf_counter() - sent)
print(1000 * slowest_s)
"""


@contextmanager
def _watching(server: Server) -> Iterator[_Watch]:
    watch = _Watch(server.resident_bytes(), server.resident_bytes())
    command = [sys.executable, "-c", _WATCH, str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watching:
        time.sleep(0.5)
        stop = threading.Event()
        weighing = threading.Thread(target=_weigh, args=(server, watch, stop))
        weighing.start()
        try:
            yield watch
        finally:
            stop.set()
            weighing.join()
            told, _ = watching.communicate(timeout=90)
    watch.slowest_ms = float(told)


def _weigh(server: Server, watch: _Watch, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        watch.most = max(watch.most, server.resident_bytes())


async def _pipelined(server: Server, path: str, count: int, *, seconds: float) -> _Watch:
    """Many connections that send all of their requests at once, and read."""
    requests = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * count

    async def flood() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(requests)
        with suppress(ConnectionError):
            while await reader.read(_MIB):
                pass
        writer.transport.abort()

    with _watching(server) as watch:
        await _for_at_most([flood() for _ in range(_PIPELINING)], seconds=seconds)
    return watch


async def _many(server: Server, count: int, *, seconds: float) -> _Watch:
    """Many connections at once with a request each, which stay."""

    async def stay() -> None:
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            while await reader.read(_MIB):
                pass
            writer.transport.abort()

    with _watching(server) as watch:
        await _for_at_most([stay() for _ in range(count)], seconds=seconds)
    return watch


async def _unread(server: Server, count: int, *, seconds: float) -> tuple[_Watch, float]:
    """Clients that send a body whose documents come back, and do not read them; how long until all are cut off."""
    document = {"text": "a", "metadata": "m" * _UNREAD_BYTES}
    body = json.dumps({"query": "q", "return_documents": True, "documents": [document]}).encode()
    clients = [socket.socket() for _ in range(count)]
    with _watching(server) as watch:
        for client in clients:
            # A small window, so that the answer stays with the service.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            await asyncio.to_thread(client.sendall, _head("first", len(body)) + body)
            await asyncio.sleep(0.3)
        began = perf_counter()
        while _unread_answers(server) and perf_counter() - began < seconds:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.05)
        took = perf_counter() - began
    for client in clients:
        client.close()
    return watch, took


def _unread_answers(server: Server) -> int:
    """Connections of the server on which the kernel has bytes that the peer does not take."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    port = f":{server.port:04X}"
    return sum(1 for row in rows if row[1].endswith(port) and row[3] == "01" and not row[4].startswith("00000000:"))


async def _unfinished(server: Server, *, seconds: float) -> int:
    """One key sends five bodies without their ends; how another key's request is answered meanwhile."""
    size = (_MAX_HELD_BYTES - 65_536) // 5
    senders = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    for sender in senders:
        await asyncio.to_thread(sender.sendall, _head("first", size + 1) + b" " * size)
    await asyncio.sleep(min(1.0, seconds))
    body = json.dumps({"query": "q", "documents": ["a" * 13_000] * 10}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(_head("second", len(body)) + body)
    status = int((await reader.readline()).split()[1])
    writer.transport.abort()
    for sender in senders:
        sender.close()
    return status


def _head(key: str, size: int) -> bytes:
    return (
        f"POST /v2/rerank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {size}\r\n\r\n".encode()
    )


async def _for_at_most(loads: Sequence[object], *, seconds: float) -> None:
    tasks = [asyncio.ensure_future(load) for load in loads]  # type: ignore[call-overload] # coroutines, all of them
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    options = parser(__doc__, seconds=8)
    options.add_argument("--pipelined", type=int, default=2000, help="requests on each of a hundred connections")
    options.add_argument("--connections", type=int, default=2500, help="at once")
    options.add_argument("--unread", type=int, default=16, help="answers of 12 MiB that are not read")
    arguments = options.parse_args()
    seconds = arguments.seconds
    claims: list[Claim] = []
    with served(arguments.registry, **_BOUNDS) as server:
        for path, count in (("/health", arguments.pipelined), ("/openapi.json", arguments.pipelined // 100)):
            watch = run(_pipelined(server, path, count, seconds=seconds))
            claims += watch.claims(f"{count} pipelined {path} x {_PIPELINING}", mib=64, ms=100)
        watch = run(_many(server, arguments.connections, seconds=seconds))
        claims += watch.claims(f"{arguments.connections} connections", mib=64, ms=250)
        status = run(_unfinished(server, seconds=seconds))
        claims.append(Claim("a key beside another's unfinished bodies: status", status, "<=", 200))
        watch, took = run(_unread(server, arguments.unread, seconds=seconds))
        claims += watch.claims(f"{arguments.unread} answers not read", mib=256, ms=250)
        claims.append(Claim("until they are cut off, s", took, "<=", 2 * _WRITE_TIMEOUT_S))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
