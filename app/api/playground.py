"""A page at `/` to try the service in a browser: three files, no build step, nothing from elsewhere.

Its addresses are relative, so that it works behind a proxy that puts a prefix before them.
"""

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

_FOLDER: Final = Path(__file__).parent / "static"
_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("playground.html", "text/html"),
    "/playground.css": ("playground.css", "text/css"),
    "/playground.js": ("playground.js", "text/javascript"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def playground_routes() -> APIRouter:
    """The page, its style and its script. They are read once, here."""
    router = APIRouter()
    for path, (name, media_type) in _FILES.items():
        endpoint = _file(_FOLDER / name, media_type)
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _file(path: Path, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = path.read_bytes()
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    # no-cache: asked about each time, so that a page and a script of two releases never meet
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "ETag": etag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer
