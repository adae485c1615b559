"""Reads the JSON object that a request's body is. A large one is counted before any of it is built, and then read in
pieces, so that it neither holds up the event loop nor takes more memory than a multiple of its bytes.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from starlette.requests import Request

from rerankd.api.parsing.json_outline import outline
from rerankd.api.parsing.json_text import (
    MOST_LEVELS,
    Bounds,
    kind_of,
    read,
    read_in_pieces,
    refuse_many_fields,
    refuse_other_encodings,
    without_mark,
)
from rerankd.concurrency.sharing import SharedLoop, Turns
from rerankd.concurrency.slices import Sliced
from rerankd.concurrency.turns import Share
from rerankd.errors import InvalidRequest

T = TypeVar("T")

# A smaller body is parsed as soon as it has arrived: 0.1 ms, or 1.5 ms if it consists of brackets.
SMALL_BYTES: Final = 1 << 15
# A smaller body is parsed in one step of its caller's turn: 0.5 ms, or 12 ms if it consists of brackets.
_AT_ONCE_BYTES: Final = 1 << 18
_BODIES_AT_A_TIME: Final = 4
# About as much of a body is read in one turn, which holds the event loop. A small request needs the loop some twenty
# times on its way: beside turns of 256 KiB it took a third longer.
STEP_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What a body may hold. An object counts as four values: it takes that much more memory than others."""

    max_values: int
    max_fields: int
    max_text_bytes: int


@dataclass(frozen=True, slots=True)
class Body:
    """A body's fields, and the bytes that it came as."""

    fields: dict[str, Any]
    text: bytes


class BodyReader:
    """Reads one large body of each caller at a time, and of a few callers together: JSON is larger in memory than on
    the wire, even what will be refused. Callers take turns part by part, so that nobody waits for another's whole body.
    """

    def __init__(self, limits: BodyLimits) -> None:
        self.loop = SharedLoop()
        self._limits = limits
        self._bodies = Turns(_BODIES_AT_A_TIME, per_caller=1)
        self._parts = Turns(1)

    async def read_object(self, request: Request, *, caller: str = "") -> Body:
        """The JSON object that a body is; `caller` is whose it is.

        Raises:
            InvalidRequest: it is no JSON, or something else than an object.
            RequestTooLarge: it has too many values or fields, or too long a text.
            ClientDisconnect: the client went away before all of it had arrived.
        """
        chunks = [chunk async for chunk in request.stream()]
        if sum(map(len, chunks)) > _AT_ONCE_BYTES:
            # in a thread, for which bytes.join gives up Python's lock
            text = without_mark(await asyncio.to_thread(b"".join, chunks))
            del chunks
            return self._body(await self._in_pieces(text, caller), text)
        text = without_mark(b"".join(chunks))
        if len(text) <= SMALL_BYTES:
            return self._body(read(text), text)
        return self._body(await self.loop.run(Share(caller=caller, left=len(text)), _at_once(text)), text)

    async def _in_pieces(self, text: bytes, caller: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        refuse_other_encodings(text)
        limits, size = self._limits, len(text)
        bounds = Bounds(fields=limits.max_fields, text_bytes=limits.max_text_bytes)
        async with self._bodies.turn(Share(caller=caller, cost=size, left=size)):
            scan = outline(text, most_values=limits.max_values, most_levels=MOST_LEVELS)
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
        refuse_many_fields(len(value), self._limits.max_fields)
        return Body(value, text)


def _at_once(text: bytes) -> Sliced[Any]:
    yield from ()
    return read(text)
