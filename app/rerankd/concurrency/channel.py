"""A channel between two processes of this service, over a socket pair that only they have.

Each side calls the other by name, and tells it what needs no answer. A message is a head of JSON and a body of bytes.
Messages that are sent in one turn of the event loop leave in one write.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from itertools import count
from struct import Struct
from typing import Any, Final, cast

import orjson

from rerankd import errors
from rerankd.errors import ConfigError, RerankError, Unavailable

logger = logging.getLogger(__name__)

Head = dict[str, Any]
Reply = tuple[Head, bytes]
# What answers a call: at once, or later.
Handler = Callable[[Head, bytes], Reply | Awaitable[Reply]]
Notice = Callable[[Head], None]

# Bytes of the head and of the body, what kind of message it is, and the number of the call.
_FRAME: Final = Struct("<IIBQ")
_CALL, _TELL, _ANSWER, _FAILURE, _CANCEL = range(5)
_READ_BYTES: Final = 1 << 18
_ERRORS: Final[dict[str, type[Exception]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RerankError | ConfigError)
}


class Channel(asyncio.BufferedProtocol):
    """One end. `calls` and `notices` are what the other end may ask and tell; `lost` is called when it is gone."""

    def __init__(self, other: str, *, lost: Callable[[], None]) -> None:
        """`other` names the process at the other end, for messages."""
        self.calls: dict[str, Handler] = {}
        self.notices: dict[str, Notice] = {}
        self.is_lost = False
        self._other = other
        self._lost = lost
        self._numbers = count()
        # Calls that have no answer yet, and what hears it if nobody waits any more.
        self._waiting: dict[int, tuple[asyncio.Future[Reply], Notice]] = {}
        self._answering: dict[int, asyncio.Future[Reply]] = {}
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray(_READ_BYTES)
        self._begin = self._end = 0
        self._unsent: list[bytes] = []

    async def call(self, name: str, head: Head, body: bytes = b"", *, late: Notice | None = None) -> Reply:
        """Ask the other end. If the caller is cancelled, so is the call; `late` then gets what it still answered.

        Raises:
            RerankError, ConfigError: what the other end raised.
            Unavailable: the other end is gone.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        late = late or _ignore
        self._waiting[number] = answer, late
        self._send(_CALL, number, [name, head], body)
        try:
            return await answer
        except asyncio.CancelledError:
            if number in self._waiting:
                self._send(_CANCEL, number, None)
            elif not answer.cancelled() and answer.exception() is None:
                late(answer.result()[0])
            raise

    def tell(self, name: str, head: Head) -> None:
        """Tell the other end what needs no answer."""
        self._send(_TELL, 0, [name, head])

    def close(self) -> None:
        """Hang up, once what was told is sent; both ends see the channel as lost."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self.is_lost = True
        for task in self._answering.values():
            task.cancel()
        for answer, _ in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._gone())
        self._waiting.clear()
        self._lost()

    def get_buffer(self, _size: int) -> memoryview:
        if self._end == len(self._buffer):
            unread = self._end - self._begin
            # A frame that does not fit gets a buffer of its size; the next smaller ones a usual one again.
            size = max(_READ_BYTES, 2 * unread)
            self._buffer[:unread] = self._buffer[self._begin : self._end]
            if size != len(self._buffer):
                self._buffer = self._buffer[:unread] + bytes(size - unread)
            self._begin, self._end = 0, unread
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, size: int) -> None:
        self._end += size
        while self._end - self._begin >= _FRAME.size:
            of_head, of_body, kind, number = _FRAME.unpack_from(self._buffer, self._begin)
            head_at = self._begin + _FRAME.size
            body_at = head_at + of_head
            if self._end < body_at + of_body:
                break
            head = orjson.loads(self._buffer[head_at:body_at])
            body = bytes(memoryview(self._buffer)[body_at : body_at + of_body])
            self._begin = body_at + of_body
            self._receive(kind, number, head, body)
        if self._begin == self._end:
            self._begin = self._end = 0

    def _receive(self, kind: int, number: int, head: Any, body: bytes) -> None:  # noqa: ANN401 - JSON
        if kind == _CALL:
            self._answer(number, head[0], head[1], body)
        elif kind == _TELL:
            self.notices[head[0]](head[1])
        elif kind == _CANCEL:
            if number in self._answering:
                self._answering[number].cancel()
        else:
            answer, late = self._waiting.pop(number)
            if answer.done():  # it was cancelled
                late(head)
            elif kind == _ANSWER:
                answer.set_result((head, body))
            else:
                answer.set_exception(revived(head))

    def _answer(self, number: int, name: str, head: Head, body: bytes) -> None:
        try:
            reply = self.calls[name](head, body)
        except Exception as error:  # noqa: BLE001 - it is told to the other end
            self._send(_FAILURE, number, described(error))
            return
        if isawaitable(reply):
            task = self._answering[number] = asyncio.ensure_future(reply)
            task.add_done_callback(lambda _: self._tell_outcome(number, task))
        else:
            self._send(_ANSWER, number, *reply)

    def _tell_outcome(self, number: int, task: "asyncio.Future[Reply]") -> None:
        """Every call has an answer, even one that was cancelled before it began."""
        del self._answering[number]
        if task.cancelled():
            self._send(_FAILURE, number, described(Unavailable("cancelled")))
        elif error := task.exception():
            self._send(_FAILURE, number, described(error))
        else:
            self._send(_ANSWER, number, *task.result())

    def _send(self, kind: int, number: int, head: Any, body: bytes = b"") -> None:  # noqa: ANN401 - JSON
        if self.is_lost or self._transport is None:
            if kind == _CALL:
                answer, _ = self._waiting.pop(number)
                answer.set_exception(self._gone())
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        told = orjson.dumps(head)
        self._unsent += (_FRAME.pack(len(told), len(body), kind, number), told, body)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self.is_lost:
            self._transport.write(b"".join(unsent))

    def _gone(self) -> Unavailable:
        return Unavailable(f"{self._other} is gone; try again in a moment", retry_after_s=2.0)


def described(error: BaseException) -> Head:
    """An error for the other end, as the nearest kind that it knows. One that is none of ours is logged here, where its
    trace is.
    """
    if not isinstance(error, RerankError | ConfigError):
        logger.error("a call of another process failed", exc_info=error)
        return {"error": RerankError.__name__, "message": f"{error!r:.200}"}
    waits = {"retry_after_s": error.retry_after_s} if isinstance(error, Unavailable) else {}
    known = next(kind for kind in type(error).__mro__ if kind in _ERRORS.values())
    return {"error": known.__name__, "message": str(error), **waits}


def revived(head: Mapping[str, Any]) -> Exception:
    """The error that the other end described."""
    waits = {"retry_after_s": head["retry_after_s"]} if "retry_after_s" in head else {}
    return _ERRORS[head["error"]](head["message"], **waits)


def _ignore(_head: Head) -> None:
    pass
