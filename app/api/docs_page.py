"""The OpenAPI document as a page at `/docs`: Swagger UI, from a package that brings its files instead of from a CDN.

Its addresses are relative, so that it works behind a proxy that puts a prefix before them.
"""

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter

from app.api.static_files import static_file

_OURS: Final = Path(__file__).parent / "static"
_SWAGGER: Final = files("fastapi_swagger.resources")
_FILES: Final = {
    "/docs": (_OURS / "docs.html", "text/html"),
    "/docs/start.js": (_OURS / "docs.js", "text/javascript"),
    "/docs/swagger-ui.css": (_SWAGGER / "swagger-ui.css", "text/css"),
    "/docs/swagger-ui-bundle.js": (_SWAGGER / "swagger-ui-bundle.js", "text/javascript"),
}
# Swagger UI writes styles into its elements.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def docs_routes() -> APIRouter:
    """The page and what it loads. All of it is read once, here."""
    router = APIRouter()
    for path, (file, media_type) in _FILES.items():
        endpoint = static_file(file, media_type, policy=_POLICY)
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
    return router
