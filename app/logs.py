"""JSON lines on standard error, each with the id of the request it belongs to. Never a document's text."""

import logging
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_FORMAT = "{asctime}{levelname}{name}{message}"


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        current = request_id.get()
        if current is not None:
            record.request_id = current
        return True


def configure(level: str) -> None:
    """Send every logger of this process, uvicorn's too, through one JSON handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(_FORMAT, style="{", rename_fields={"asctime": "time", "levelname": "level"}))
    handler.addFilter(_WithRequestId())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
