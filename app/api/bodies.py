"""Reads the JSON of a request's body. Large ones are parsed in parts, so that they do not hold up the event loop.

orjson is the fastest parser, but it takes a body at once, a millisecond and a half for each megabyte. ijson can be fed.
It also reads what orjson refuses, the first half of a surrogate pair (as a question mark) and values nested without
end, and refuses what orjson reads, integers beyond 64 bits. So that no answer depends on a body's size, a body in which
there is any such doubt is read by orjson after all.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import ijson
import orjson
from starlette.requests import Request

from app.errors import InvalidRequest, RequestTooLarge
from app.sharing import Turns
from app.turns import Share

_AT_ONCE_BYTES: Final = 1 << 20
_PART_BYTES: Final = 1 << 15
_MAX_VALUES: Final = 4_000_000
_MAX_DEPTH: Final = 1000
_BODIES_AT_A_TIME: Final = 4
_STEPS: Final = {"start_array": 1, "start_map": 1, "end_array": -1, "end_map": -1}
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE_PAIR: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class BodyReader:
    """Reads one large body of each caller at a time, and of a few callers together: JSON is larger in memory than on
    the wire, even what will be refused. Callers take turns part by part, so that nobody waits for another's whole body.
    """

    def __init__(self) -> None:
        self._bodies = Turns(_BODIES_AT_A_TIME, per_caller=1)
        self._parts = Turns(1)

    async def read_object(self, request: Request, *, caller: str = "") -> dict[str, Any]:
        """The JSON object that a body is; `caller` is whose it is.

        Raises:
            InvalidRequest: it is no JSON, or something else than an object.
            RequestTooLarge: it has too many values; in memory even `[]` takes a hundred bytes.
            ClientDisconnect: the client went away before all of it had arrived.
        """
        chunks = [chunk async for chunk in request.stream()]
        size = sum(map(len, chunks))
        body = await self._in_parts(chunks, caller, size=size) if size > _AT_ONCE_BYTES else _at_once(chunks)
        if not isinstance(body, dict):
            raise InvalidRequest(f"the body is a JSON {type(body).__name__}; send an object with query and documents")
        return body

    async def _in_parts(self, chunks: Sequence[bytes], caller: str, *, size: int) -> Any:  # noqa: ANN401 - any JSON
        async with self._bodies.turn(Share(caller=caller, cost=size, left=size)):
            await _refuse_too_many_values(chunks)
            parser = _Parser()
            async for part in self._in_turn(chunks, caller, size=size):
                parser.feed(part)
            return parser.body if parser.understood() else _at_once(chunks)

    async def _in_turn(self, chunks: Sequence[bytes], caller: str, *, size: int) -> AsyncIterator[bytes]:
        """The parts of a body, each when it is this caller's turn."""
        turn = await self._parts.enter(Share(caller=caller, left=size))
        try:
            for part in _parts(chunks):
                turn = await self._parts.again(turn, Share(caller=caller, cost=len(part), left=size))
                await asyncio.sleep(0)
                yield part
                size -= len(part)
            await asyncio.sleep(0)
        finally:
            self._parts.leave(turn)


async def _refuse_too_many_values(chunks: Sequence[bytes]) -> None:
    """Counting them is quick, reading them is not."""
    values = 0
    for part in _parts(chunks):
        await asyncio.sleep(0)
        # Each value but the first follows one of these three.
        values += sum(map(part.count, (b",", b"[", b"{")))
    if values > _MAX_VALUES:
        raise RequestTooLarge(
            f"the body has {values} commas, brackets and braces; at most {_MAX_VALUES} are taken: send fewer documents"
        )


def _at_once(chunks: Sequence[bytes]) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        return orjson.loads(b"".join(chunks))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is no valid JSON: {error}") from None


def _parts(chunks: Sequence[bytes]) -> Iterator[bytes]:
    """The same bytes in small parts, cut behind a blank where there is one: that is never within an escape."""
    rest = b""
    for chunk in chunks:
        for start in range(0, len(chunk), _PART_BYTES):
            piece = rest + chunk[start : start + _PART_BYTES]
            end = piece.rfind(b" ") + 1 or len(piece)
            yield piece[:end]
            rest = piece[end:]
    if rest:
        yield rest


class _Parser:
    """Reads parts of a body until it is in doubt."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events, use_float=True)
        self._builder = ijson.ObjectBuilder()
        self._depth = 0
        self._in_doubt = False

    @property
    def body(self) -> Any:  # noqa: ANN401 - whatever JSON holds
        return self._builder.value

    def feed(self, part: bytes) -> None:
        if self._in_doubt:
            return
        try:
            self._parser.send(part)
        except (ijson.JSONError, ValueError):
            self._in_doubt = True
            return
        # A second half by itself is a ValueError, so that a first one that lacks it cannot be made up for.
        self._in_doubt = len(_SURROGATE.findall(part)) != 2 * len(_SURROGATE_PAIR.findall(part))
        self._build()

    def understood(self) -> bool:
        """Whether all was read, to the end, as orjson would have read it."""
        if not self._in_doubt:
            try:
                self._parser.close()
            except (ijson.JSONError, ValueError):
                self._in_doubt = True
        return not self._in_doubt

    def _build(self) -> None:
        for event, value in self._events:
            self._depth += _STEPS.get(event, 0)
            if self._depth > _MAX_DEPTH:
                self._in_doubt = True
                return
            self._builder.event(event, value)
        del self._events[:]
