"""Paths that are not there as they were sent: behind a proxy's prefix, or misspelt, where the caller is told what it
probably meant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import groupby
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.answers import plain_error

_LONGEST: Final = 100


class WithoutPrefix:
    """Takes a proxy's prefix off the paths, where the proxy does not."""

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith(f"{self._prefix}/"):
            scope = {**scope, "path": path[len(self._prefix) :]}
        await self._app(scope, receive, send)


class WrongPaths:
    """Answers Starlette's own 404 and 405 in the body that every client can read."""

    def __init__(self, paths: Callable[[], Iterable[str]], *, documented: bool) -> None:
        self._paths_of_all = paths
        self._hint = "; GET /docs lists what there is" if documented else ""

    @cached_property
    def _paths(self) -> list[str]:
        return sorted({path for path in self._paths_of_all() if "{" not in path})

    async def __call__(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls this for nothing else
        code = "not_found" if error.status_code == 404 else "invalid_request"
        said = self._said(request.url.path, error.status_code, error.headers or {}) or error.detail
        message = f"{request.method} {request.url.path[:_LONGEST]}: {said}{self._hint}"
        return plain_error(error.status_code, code=code, message=message, headers=dict(error.headers or {}))

    def _said(self, path: str, status: int, headers: Mapping[str, str]) -> str | None:
        if status == 405 and "Allow" in headers:
            return f"this path takes {headers['Allow']}"
        nearest = nearest_path(path, self._paths) if status == 404 else None
        return f"no such path; did you mean {nearest}?" if nearest else None


def nearest_path(path: str, known: Sequence[str]) -> str | None:
    """The known path that one probably meant: without doubled parts, slashes and what a proxy should have taken off,
    or else one that is spelt nearly so.
    """
    if len(path) > _LONGEST:
        return None
    parts = [part for part, _ in groupby(part for part in path.split("/") if part)]
    tidy = "/" + "/".join(parts)
    ends = ("/" + "/".join(parts[start:]) for start in range(len(parts)))
    found = next((end for end in ends if end in known), None)
    return found or next(iter(get_close_matches(tidy, known, n=1, cutoff=0.7)), None)
