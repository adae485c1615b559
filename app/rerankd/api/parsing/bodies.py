"""Reads the JSON object of a request body. The values of a large body are counted before any of them is built. Then it
is parsed in pieces, so that it does not block the event loop, and its memory stays a small multiple of its bytes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from starlette.requests import Request

from rerankd.api.connected import while_connected
from rerankd.api.middleware import claim_of
from rerankd.api.parsing.json_outline import outline
from rerankd.api.parsing.json_text import (
    MAX_LEVELS,
    Bounds,
    check_encoding,
    check_field_count,
    kind_of,
    read,
    read_in_pieces,
    without_bom,
)
from rerankd.concurrency.pacing import is_held_back, pause
from rerankd.concurrency.sharing import SharedLoop, Turns
from rerankd.concurrency.slices import Sliced
from rerankd.concurrency.turns import Share
from rerankd.errors import InvalidRequest

T = TypeVar("T")

# A smaller body is parsed as soon as it has arrived, in 0.1 ms (1.5 ms if it is all brackets).
SMALL_BYTES: Final = 1 << 15
# A smaller body is parsed in one step of its caller's turn, in 0.5 ms (12 ms if it is all brackets).
_AT_ONCE_BYTES: Final = 1 << 18
_CONCURRENT_BODIES: Final = 4
# About this much of a body is parsed in one turn, which blocks the event loop. A small request needs the loop about 20
# times: next to turns of 256 KiB it took a third longer.
STEP_BYTES: Final = 1 << 16
# What the loop takes for a byte of a body before it is here: 0.1 ms for 64 KiB.
_READ_S: Final = 1.5e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What a body may hold. An object counts as four values, because it takes about that much more memory."""

    max_values: int
    max_fields: int
    max_text_bytes: int


@dataclass(frozen=True, slots=True)
class Body:
    """A body's fields, and the bytes that they were parsed from."""

    fields: dict[str, Any]
    text: bytes


def _nothing() -> None: ...


class BodyReader:
    """Reads one large body of each caller at a time, and of a few callers concurrently, because JSON takes more memory
    than its bytes, even if it will be rejected. Callers take turns part by part: none waits for another's whole body.
    """

    def __init__(self, limits: BodyLimits) -> None:
        self.loop = SharedLoop()
        self._limits = limits
        self._bodies = Turns(_CONCURRENT_BODIES, per_caller=1)
        self._parts = Turns(1)

    async def read_object(
        self, request: Request, *, caller: str = "", on_arrival: Callable[[], None] = _nothing
    ) -> Body:
        """The JSON object in the body of a request; `caller` is the name of its API key. `on_arrival` is called when
        all of its bytes are here.

        Raises:
            InvalidRequest: it is not JSON, or not an object.
            RequestTooLarge: it has too many values or fields, or too long a text.
            ClientDisconnect: the client went away before all of it had arrived.
            CallerGone: it went away after that, before a large body was parsed.
        """
        chunks = []
        async for chunk in request.stream():
            chunks.append(chunk)
            await _give_way(chunk)
        on_arrival()
        if sum(map(len, chunks)) > _AT_ONCE_BYTES:
            # in a thread, because bytes.join releases the GIL
            text = without_bom(await asyncio.to_thread(b"".join, chunks))
            del chunks
            with while_connected(request.receive):
                return self._body(await self._in_pieces(text, caller), text)
        return await self.read_text(b"".join(chunks), caller=caller)

    async def read_text(self, text: bytes, *, caller: str = "") -> Body:
        """The JSON object in bytes that are here already.

        Raises:
            InvalidRequest, RequestTooLarge: as `read_object`.
        """
        text = without_bom(text)
        if len(text) <= SMALL_BYTES:
            return self._body(read(text), text)
        if len(text) > _AT_ONCE_BYTES:
            return self._body(await self._in_pieces(text, caller), text)
        return self._body(await self.loop.run(Share(caller=caller, left=len(text)), _at_once(text)), text)

    async def discard(self, request: Request) -> None:
        """Read a body of which nothing is needed.

        Raises:
            ClientDisconnect: the client went away before all of it had arrived.
        """
        async for chunk in request.stream():
            claim_of(request.scope).hold(-len(chunk))
            await _give_way(chunk)

    async def _in_pieces(self, text: bytes, caller: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        check_encoding(text)
        limits, size = self._limits, len(text)
        bounds = Bounds(fields=limits.max_fields, text_bytes=limits.max_text_bytes)
        async with self._bodies.turn(Share(caller=caller, cost=size, left=size)):
            scan = outline(text, max_values=limits.max_values, max_levels=MAX_LEVELS)
            found = await self._in_turn(scan, caller, size=size)
            return await self._in_turn(read_in_pieces(text, found, bounds), caller, size=size)

    async def _in_turn(self, work: Sliced[T], caller: str, *, size: int) -> T:
        """The result of the work; each step of it waits for a turn of this caller."""
        turn = await self._parts.enter(Share(caller=caller, left=size))
        try:
            while True:
                turn = await self._parts.again(turn, Share(caller=caller, cost=STEP_BYTES, left=size))
                await asyncio.sleep(0)
                next(work)
                size = max(1, size - STEP_BYTES)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            self._parts.leave(turn)

    def _body(self, value: Any, text: bytes) -> Body:  # noqa: ANN401 - whatever JSON holds
        if not isinstance(value, dict):
            raise InvalidRequest(f"the body is a JSON {kind_of(value)}; send an object with query and documents")
        check_field_count(len(value), self._limits.max_fields)
        return Body(value, text)


async def _give_way(chunk: bytes) -> None:
    """Count a chunk of a body that has arrived. What comes while its caller is held back waits on the connection, where
    little is buffered.
    """
    if is_held_back(elsewhere_s=_READ_S * len(chunk)):
        await pause()


def _at_once(text: bytes) -> Sliced[Any]:
    yield from ()
    return read(text)
