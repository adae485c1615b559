"""JSON lines on standard error, each with the id of the request it belongs to. Never a document's text."""

import logging
from contextvars import ContextVar

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_FORMAT = "{levelname}{name}{message}"
# uvicorn adds its message again, with terminal colours
_LEFT_OUT = ("color_message", "taskName")


class _WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        current = request_id.get()
        if current is not None:
            record.request_id = current
        return True


def configure(level: str) -> None:
    """Send every logger of this process, uvicorn's too, through one JSON handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(
            _FORMAT,
            style="{",
            timestamp="time",
            rename_fields={"levelname": "level"},
            reserved_attrs=[*RESERVED_ATTRS, *_LEFT_OUT],
        )
    )
    handler.addFilter(_WithRequestId())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
