"""Paths that do not exist as sent: behind a proxy's prefix, or misspelt. An error suggests the nearest path."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import groupby
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rerankd.api.answers import plain_error

_LONGEST: Final = 100
_VERSION: Final = re.compile(r"v\d+")
# Paths that browsers ask for, and that a private service does not have.
_PAGES: Final = frozenset(["/", "/docs", "/playground.css", "/playground.js"])


class WithoutPrefix:
    """Removes a proxy's prefix from paths if the proxy does not."""

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith(f"{self._prefix}/"):
            scope = {**scope, "path": path[len(self._prefix) :]}
        await self._app(scope, receive, send)


class WrongPaths:
    """Answers Starlette's 404 and 405 with the error body that every client can read."""

    def __init__(self, paths: Callable[[], Iterable[str]], *, documented: bool) -> None:
        self._paths_of_all = paths
        self._documented = documented

    @cached_property
    def _paths(self) -> list[str]:
        return sorted({path for path in self._paths_of_all() if "{" not in path})

    async def __call__(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls this for nothing else
        code = "not_found" if error.status_code == 404 else "invalid_request"
        reason = self._reason(request.url.path, error.status_code, error.headers or {}) or error.detail
        hint = "GET /docs lists all paths" if self._documented else ""
        between = "" if not hint else " " if reason.endswith("?") else "; "
        message = f"{request.method} {request.url.path[:_LONGEST]}: {reason}{between}{hint}"
        return plain_error(error.status_code, code=code, message=message, headers=dict(error.headers or {}))

    def _reason(self, path: str, status: int, headers: Mapping[str, str]) -> str | None:
        if status == 405 and "Allow" in headers:
            return f"this path takes {headers['Allow']}"
        if status == 404 and not self._documented and path in _PAGES:
            return (
                "RERANKD_PRIVATE switches the playground and /docs off; send requests to POST /v2/rerank with an API "
                "key, and see GET /openapi.json with one for all paths"
            )
        if status != 404:
            return None
        nearest = nearest_path(path, self._paths)
        return f"no such path; did you mean {nearest}?" if nearest else "no such path"


def nearest_path(path: str, known: Sequence[str]) -> str | None:
    """The known path that was probably meant: without doubled parts and slashes, without a proxy's prefix, or with the
    latest version instead of an unknown one; otherwise the path with the most similar spelling.
    """
    if len(path) > _LONGEST:
        return None
    parts = [part for part, _ in groupby(part for part in path.split("/") if part)]
    tidy = "/" + "/".join(parts)
    if parts and tidy not in known and _VERSION.fullmatch(parts[0]):
        versions = [
            path for path in known if _VERSION.fullmatch(path.split("/")[1]) and path.split("/")[2:] == parts[1:]
        ]
        if versions:
            return max(versions, key=lambda path: int(path.split("/")[1][1:]))
    ends = ("/" + "/".join(parts[start:]) for start in range(len(parts)))
    found = next((end for end in ends if end in known), None)
    return found or next(iter(get_close_matches(tidy, known, n=1, cutoff=0.7)), None)
