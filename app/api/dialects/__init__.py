"""The dialects, in the order in which they may claim a body on a shared path. A new one is a file and one line here."""

from typing import Final

from app.api.dialects.base import Dialect
from app.api.dialects.cohere import COHERE_V2
from app.api.dialects.jina import JINA

DIALECTS: Final[tuple[Dialect, ...]] = (COHERE_V2, JINA)
