"""The OpenAPI document as a page at `/docs`: Swagger UI, with files from a package instead of a CDN.

Its URLs are relative, so that it works behind a proxy with a path prefix.
"""

from importlib.resources import files
from pathlib import Path
from typing import Final

from rerankd.api.fixed_answers import FixedAnswer, fixed_file

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


def docs_files() -> dict[str, FixedAnswer]:
    """The page and what it loads, by path."""
    return {path: fixed_file(file, media_type, policy=_POLICY) for path, (file, media_type) in _FILES.items()}
