"""The log: one JSON object per line, or readable text on a terminal. Never contains document texts or keys.

The service writes it from a thread (`log_writer.py`). Everything else on standard error becomes part of the log too:
messages of native libraries, warnings and uncaught exceptions.
"""

import faulthandler
import json
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from subprocess import DEVNULL, Popen
from threading import Thread
from time import sleep
from typing import Any, Final

import orjson

from rerankd.errors import ConfigError, RerankError
from rerankd.telemetry.log_writer import LogWriter
from rerankd.telemetry.redaction import redacted

logger = logging.getLogger(__name__)
foreign = logging.getLogger("stderr")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# Their messages are useless to an operator, or repeat ours.
_TOO_TALKATIVE: Final = (
    "httpx",
    "httpcore",
    "httpx2",
    "httpcore2",
    "huggingface_hub",
    "hf_xet",
    "urllib3",
    "filelock",
    "uvicorn.access",
    "uvicorn.error",
)
# Fields of every record. uvicorn adds its message again, with terminal colours, and Ray the time.
_NOT_EXTRA: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message", "_ray_timestamp_ns"}
)
_LONGEST_LINE: Final = 32 * 1024
_LONGEST_VALUE: Final = 1024
_LONGEST_TRACEBACK: Final = 16 * 1024
_FLUSH_TIMEOUT_S: Final = 2.0
_FOREIGN_BYTES: Final = 16 * 1024
_FOREIGN_PAUSE_MS: Final = 20
_TRACEBACK: Final = "Traceback (most recent call last)"
_STANDARD_ERROR: Final = 2
_OURS: Final = "rerankd."
_SHELL: Final = "/bin/sh"

# The writer of this process; tests start more.
_writers: Final[list[LogWriter]] = []


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    TEXT = "text"

    @property
    def is_json(self) -> bool:
        """AUTO means text on a terminal, and else JSON."""
        return self is LogFormat.JSON or (self is LogFormat.AUTO and not os.isatty(_STANDARD_ERROR))


def dropped_lines() -> int:
    """Log lines that were dropped because the reader was too slow or gone."""
    return sum(writer.dropped for writer in _writers)


def configure(level: str, form: LogFormat = LogFormat.AUTO) -> None:
    """Log to standard error, for commands that end on their own."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine() if form.is_json else TextLine())
    _install(handler, level)


@contextmanager
def serving(level: str, form: LogFormat) -> Iterator[None]:
    """Log to standard error without ever waiting for its reader. Unless that is a terminal, everything else that this
    process writes there becomes part of the log too.

    Raises:
        SystemExit: something was raised inside; it is logged.
    """
    formatter = JsonLine() if form.is_json else TextLine()
    real = _real_standard_error()
    writer = LogWriter(real, report=lambda dropped: _report(formatter, dropped))
    _writers.append(writer)
    _install(_ThreadedHandler(writer, formatter), level)
    wrapped = not os.isatty(real)
    try:
        with _exceptions_of_threads_logged(), _foreign_output_logged(real) if wrapped else nullcontext():
            yield
    except (ConfigError, RerankError) as error:
        logger.critical("%s", error)
        raise SystemExit(2) from None
    except Exception:
        logger.critical("the service ends because of an unexpected error", exc_info=True)
        raise SystemExit(1) from None
    finally:
        if writer.close(timeout_s=_FLUSH_TIMEOUT_S) and wrapped:
            os.dup2(real, _STANDARD_ERROR)


def log_descriptor() -> int:
    """Where the log of this process goes, for a process that it starts; call it within `serving`."""
    return _writers[-1].descriptor


def _real_standard_error() -> int:
    try:
        return os.dup(_STANDARD_ERROR)
    except OSError:  # somebody closed it
        return os.open(os.devnull, os.O_WRONLY)


@contextmanager
def _exceptions_of_threads_logged() -> Iterator[None]:
    """Log uncaught exceptions as one record each, and warnings too."""

    def uncaught(error: threading.ExceptHookArgs) -> None:
        if error.exc_value is not None and error.exc_type is not SystemExit:
            name = error.thread.name if error.thread else "?"
            _log_uncaught(error.exc_value, f"an exception ended the thread {name}")

    def unraisable(error: "sys.UnraisableHookArgs") -> None:
        if error.exc_value is not None:
            _log_uncaught(error.exc_value, error.err_msg or "an exception was ignored")

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = uncaught, unraisable
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        threading.excepthook, sys.unraisablehook = before


def _log_uncaught(error: BaseException, message: str) -> None:
    logger.error("%s", message, exc_info=(type(error), error, error.__traceback__))


@contextmanager
def _foreign_output_logged(real: int) -> Iterator[None]:
    """Reads what native libraries write to standard error from a pipe, and logs it. After a crash, the last messages
    appear on the real standard error unchanged: Python's directly, a library's from a process that outlives this one.
    """
    reading, writing = os.pipe()
    os.dup2(writing, _STANDARD_ERROR)
    os.close(writing)
    faulthandler.enable(file=real)
    reader = Thread(target=_log_foreign, args=(reading,), name="foreign-output", daemon=True)
    reader.start()
    try:
        with _last_words_saved(reading, real):
            yield
    finally:
        faulthandler.disable()
        # Nowhere at first: the real one may block. The reader comes to its end, unless a child still has the pipe.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STANDARD_ERROR)
        os.close(nowhere)
        reader.join(_FLUSH_TIMEOUT_S)


@contextmanager
def _last_words_saved(pipe: int, real: int) -> Iterator[None]:
    """Start a shell that waits for this process to end and then copies the rest of the pipe. Without a shell, messages
    of a library's last milliseconds before a crash are lost.
    """
    alive, end = os.pipe()
    command = [_SHELL, "-c", f"cat <&{alive} >/dev/null; exec cat"]
    try:
        saver = Popen(  # noqa: S603 - of our own words and a number
            command, stdin=pipe, stdout=real, stderr=DEVNULL, pass_fds=[alive], start_new_session=True
        )
    except OSError:
        yield
        return
    finally:
        os.close(alive)
    try:
        yield
    finally:
        # This process ends normally, so there is nothing to save.
        saver.kill()
        saver.wait()
        os.close(end)


def _log_foreign(descriptor: int) -> None:
    for text in _bursts(descriptor):
        for record in _records(text):
            foreign.warning("%s", record)
    os.close(descriptor)


def _records(text: str) -> list[str]:
    """Lines, each with the indented ones that follow it, and whole tracebacks."""
    records: list[list[str]] = []
    in_traceback = False
    for line in filter(str.strip, text.splitlines()):
        indented = line[0].isspace()
        if records and (indented or in_traceback):
            records[-1].append(line)
            in_traceback = in_traceback and indented
        else:
            records.append([line])
            in_traceback = line.startswith(_TRACEBACK)
    return ["\n".join(record) for record in records]


def _bursts(descriptor: int) -> Iterator[str]:
    """Whole lines and whole tracebacks, as far as they arrive within a short time. Until then they stay in the pipe,
    where they survive the process.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    burst = b""
    ended = False
    while not ended:
        came = bool(poll.poll(_FOREIGN_PAUSE_MS if burst else None))
        if came:
            sleep(_FOREIGN_PAUSE_MS / 1000)
            more = os.read(descriptor, _FOREIGN_BYTES)
            ended = not more
            burst += more
        if ended or not came or _is_whole(burst) or len(burst) >= _FOREIGN_BYTES:
            yield burst.decode("utf-8", "replace")
            burst = b""


def _is_whole(text: bytes) -> bool:
    """Whether it does not end inside a traceback."""
    last = text[text.rfind(b"\n", 0, -1) + 1 :]
    return text.endswith(b"\n") and not last.startswith((b" ", b"\t", _TRACEBACK.encode()))


def _install(handler: logging.Handler, level: str) -> None:
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in _TOO_TALKATIVE:
        logging.getLogger(noisy).setLevel(logging.WARNING)


class JsonLine(logging.Formatter):
    """`time`, `level`, `name`, `message`, the record's own fields, `request_id` and `exc_info`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "name": record.name,
            "message": _message(record),
            **_extra(record),
        }
        if exception := _exception(record):
            fields["exc_info"] = exception
        line = _json(fields)
        return line if len(line) <= _LONGEST_LINE else _json(_shortened(fields))


class TextLine(logging.Formatter):
    """`12:34:56 INFO     message  field=value`, with the traceback below. Control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).astimezone()
        fields = "".join(f" {name}={_shown(value)}" for name, value in _extra(record).items())
        line = f"{time:%H:%M:%S} {record.levelname:<8} {_printable(_message(record))}{' ' if fields else ''}{fields}"
        line = _cut(line, _LONGEST_LINE)
        exception = _printable(_exception(record), keep="\n")
        return f"{line}\n{exception}" if exception else line


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage().rstrip("\n")
    except Exception:  # noqa: BLE001 - a library's own mistake must not lose its message
        message = f"{record.msg!s} {record.args!r}"
    return message if record.name.startswith(_OURS) else redacted(_cut(message, _LONGEST_LINE))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    extra = {name: value for name, value in record.__dict__.items() if name not in _NOT_EXTRA}
    current = request_id.get()
    if current is not None:
        extra["request_id"] = current
    return extra


def _exception(record: logging.LogRecord) -> str:
    text = record.exc_text or ""
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    if record.stack_info:
        text = f"{text}\n{record.stack_info}".lstrip("\n")
    return redacted(_cut(text, _LONGEST_TRACEBACK))


def _json(fields: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError, UnicodeError):
        # orjson refuses a lone surrogate, a number beyond 64 bits, a cycle: these are written as text.
        return json.dumps({name: _plain(value) for name, value in fields.items()})


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | None) else str(value)


def _shortened(fields: Mapping[str, Any]) -> dict[str, Any]:
    longest = {"exc_info": _LONGEST_TRACEBACK}
    return {name: _cut(str(value), longest.get(name, _LONGEST_VALUE)) for name, value in fields.items()}


def _cut(text: str, longest: int) -> str:
    """Cut out the middle: the end of a traceback says what happened."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... {len(text) - 2 * half} characters left out ... {text[-half:]}"


def _shown(value: object) -> str:
    text = _cut(str(value), _LONGEST_VALUE)
    return text if text and text.isprintable() and " " not in text else repr(text)


def _printable(text: str, *, keep: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else repr(character)[1:-1] for character in text
    )


class _ThreadedHandler(logging.Handler):
    def __init__(self, writer: LogWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Called with this handler's lock held."""
        self._writer.write(f"{self.format(record)}\n".encode("utf-8", "replace"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Do not write to standard error, which would come back as another record."""

    def close(self) -> None:
        self._writer.close(timeout_s=_FLUSH_TIMEOUT_S)
        super().close()


def _report(formatter: logging.Formatter, dropped: int) -> bytes:
    told = {"levelname": "WARNING", "name": __name__, "msg": "log lines were dropped, for nobody read them"}
    return f"{formatter.format(logging.makeLogRecord({**told, 'dropped': dropped}))}\n".encode()
