"""A page at `/` to try the service in a browser: three files, no build step, nothing from other hosts.

Its URLs are relative, so that it works behind a proxy with a path prefix.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rerankd.api.fixed_answers import FixedAnswer, fixed_file

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


def playground_files() -> dict[str, FixedAnswer]:
    """The page, its style and its script, by path."""
    return {path: fixed_file(_FOLDER / name, media_type, policy=_POLICY) for path, (name, media_type) in _FILES.items()}
