"""Compares the CPU time of HTTP: our connections over httptools, and uvicorn's over h11 and over httptools.

    python -m loadtest.http_parsers [--seconds 3]

A request of 20 KB is answered with 1 KB by an application that does nothing else, over one connection of the loopback.
Server and client share a process, and CPU time of both is counted; the client's is that of a server that only counts
bytes, and is subtracted. The protocols take turns.
"""

import asyncio
import sys
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Final

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from loadtest.claims import Claim, conclude, parser, run
from rerankd.api.transport.connection import Connection
from rerankd.api.transport.connection_limiter import ConnectionLimiter, ConnectionLimits
from rerankd.telemetry.observer import Silent

_BODY: Final = b"x" * 20_000
_REQUEST: Final = (
    b"POST /v2/rerank HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: loadtest\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAuthorization: Bearer 0123456789abcdef\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)
_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"y" * 1000
_ROUNDS: Final = 5
_TOLD: Final = "microseconds"


async def _answer(_scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
    await send({"type": "http.response.body", "body": b"y" * 1000})


class _Counting(asyncio.Protocol):
    """Answers whenever as many bytes have come as a request has."""

    def __init__(self) -> None:
        self._missing = len(_REQUEST)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if not self._missing:
            self._missing = len(_REQUEST)
            self._transport.write(_ANSWER)  # type: ignore[attr-defined] # a socket's


async def _cost_us(protocol: Callable[[], asyncio.BaseProtocol], *, seconds: float) -> float:
    """CPU time of one request, in microseconds."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        end, asked, began = loop.time() + seconds, 0, process_time()
        while loop.time() < end:
            writer.write(_REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(1000)
            asked += 1
        cost = (process_time() - began) / asked
        writer.transport.abort()
    return cost * 1e6


async def _measure(seconds: float) -> list[Claim]:
    config = uvicorn.Config(_answer, log_config=None, lifespan="off", ws="none", access_log=False)
    config.load()
    bounds = ConnectionLimits(
        max_connections=10,
        max_per_address=None,
        head_timeout_s=60,
        body_timeout_s=60,
        idle_timeout_s=60,
        write_timeout_s=60,
    )
    limiter = ConnectionLimiter(bounds, Silent())
    protocols: dict[str, Callable[[], asyncio.BaseProtocol]] = {
        "nothing": _Counting,
        "ours over httptools": lambda: Connection(config, ServerState(), {}, limiter=limiter),
        "uvicorn's over httptools": lambda: HttpToolsProtocol(config, ServerState(), {}),
        "uvicorn's over h11": lambda: H11Protocol(config, ServerState(), {}),
    }
    costs: dict[str, list[float]] = {name: [] for name in protocols}
    for _ in range(_ROUNDS):
        for name, protocol in protocols.items():
            costs[name].append(await _cost_us(protocol, seconds=seconds / _ROUNDS))
    client = median(costs.pop("nothing"))
    return [Claim(f"{name}: {_TOLD} a request", median(seconds) - client) for name, seconds in costs.items()]


def main() -> int:
    options = parser(__doc__, seconds=3)
    arguments = options.parse_args()
    return conclude(run(_measure(arguments.seconds)), arguments)


if __name__ == "__main__":
    sys.exit(main())
