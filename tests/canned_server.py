"""An HTTP server of some lines that answers as a test says, byte for byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Serving = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answering = Callable[[bytes], Awaitable[bytes]]


def http_answer(status: int = 200, body: bytes = b"{}", *headers: str) -> bytes:
    """The bytes of an answer with its Content-Length."""
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def ranking(documents: int) -> bytes:
    """A rerank answer with a result for each document."""
    return json.dumps({"results": [{"index": n, "relevance_score": 0.5} for n in range(documents)]}).encode()


async def rank_all(body: bytes) -> bytes:
    """Answer a rerank request at once."""
    return http_answer(200, ranking(len(json.loads(body)["documents"])))


@asynccontextmanager
async def canned_server(answer: Answering) -> AsyncIterator[str]:
    """Serve on a free loopback port; yields the URL. Closes a connection after an answer of no bytes, or one that
    says so.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                sent = await answer(await reader.readexactly(int(length.partition(b":")[2])))
                writer.write(sent)
                if not sent or b"connection: close" in sent.lower():
                    break

    async with raw_server(serve) as url:
        yield url


@asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Run `serve` for each connection, and end all of them with the context."""
    async with asyncio.TaskGroup() as connections:
        server = await asyncio.start_server(
            lambda reader, writer: running.append(connections.create_task(_quietly(serve(reader, writer), writer))),
            "127.0.0.1",
            0,
        )
        running: list[asyncio.Task[None]] = []
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        await asyncio.sleep(0.01)  # clients' sockets that were just closed are still being closed
        for connection in running:
            connection.cancel()


async def _quietly(serving: Awaitable[None], writer: asyncio.StreamWriter) -> None:
    try:
        await serving
    finally:
        writer.close()
