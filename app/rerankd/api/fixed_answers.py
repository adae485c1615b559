"""Answers that never change: pages and their files, the OpenAPI document, `/health`.

They are rendered once and sent before any routing, so that a flood of such requests costs little.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.resources.abc import Traversable
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rerankd.api.answers import plain_error

_METHODS: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True)
class FixedAnswer:
    """`make` is called for the first request. With an `ETag` header, a client that has the content gets a 304."""

    make: Callable[[], bytes]
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def content(self) -> bytes:
        return self.make()

    def answer(self, asked: Mapping[str, str]) -> Response:
        etag = self.headers.get("ETag")
        if etag is not None and asked.get("if-none-match") == etag:
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers, media_type=self.media_type)


def fixed_file(path: Traversable, media_type: str, *, policy: str) -> FixedAnswer:
    """A file, read here; `policy` is its Content-Security-Policy."""
    content = path.read_bytes()
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    # no-cache: browsers revalidate each time, so that a page never loads a script of another release
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "ETag": etag}
    return FixedAnswer(lambda: content, media_type, headers)


class FixedAnswers:
    """Answers GET and HEAD of these paths."""

    def __init__(self, app: ASGIApp, *, answers: Mapping[str, FixedAnswer]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fixed = self._answers.get(scope["path"]) if scope["type"] == "http" else None
        if fixed is None:
            await self._app(scope, receive, send)
            return
        await self._answer(fixed, scope)(scope, receive, send)

    def _answer(self, fixed: FixedAnswer, scope: Scope) -> Response:
        method, path = scope["method"], scope["path"]
        if method in _METHODS:
            return fixed.answer(Headers(scope=scope))
        message = f"{method} {path}: this path takes GET, HEAD"
        return plain_error(405, code="invalid_request", message=message, headers={"Allow": "GET, HEAD"})
