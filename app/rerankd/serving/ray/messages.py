"""HTTP requests and answers as they travel between the front and a replica, and how ASGI applications make answers."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# What a scope says of a request. The rest belongs to the process that read it.
_KEPT: Final = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A whole request. Calls of equal `key` are best answered by the same replica."""

    scope: dict[str, Any]
    body: bytes = b""
    key: bytes = b""

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> "HttpCall":
        """A request without its body."""
        return cls({name: scope[name] for name in _KEPT if name in scope})

    def with_body(self, body: bytes, *, key: bytes) -> "HttpCall":
        return replace(self, body=body, key=key)


@dataclass(slots=True)
class HttpAnswer:
    """A whole answer; `status` 0: there is none yet."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def take(self, message: Message) -> None:
        """Take in a message of the application."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        else:
            self.body += message.get("body", b"")


async def answer_of(application: Application, call: HttpCall) -> HttpAnswer:
    """What an application answers to a call. If the caller goes away, this is cancelled."""
    answer, unread = HttpAnswer(), [call.body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    await application(dict(call.scope), receive, answer.take)
    return answer
