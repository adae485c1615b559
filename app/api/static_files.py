"""Files that are sent as they are: read once, with a policy that lets a page load nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response


def static_file(path: Traversable, media_type: str, *, policy: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that sends a file; `policy` is its Content-Security-Policy."""
    content = path.read_bytes()
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    # no-cache: asked about each time, so that a page and a script of two releases never meet
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "ETag": etag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer
