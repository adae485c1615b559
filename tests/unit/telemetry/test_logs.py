"""What a line of the log looks like: always one, bounded, and harmless to any program that shows it."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rerankd.telemetry.logs import JsonLine, TextLine, request_id

_LONGEST = 40_000
# What nothing in a line may be: terminals obey these.
_OBEYED = {chr(code) for code in (*range(32), *range(127, 160))}


def _record(message: object = "m", *args: object, **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": message, "args": args, **extra})


def _json(record: logging.LogRecord) -> dict[str, Any]:
    line = JsonLine().format(record)
    assert "\n" not in line
    assert len(line) < _LONGEST
    read: dict[str, Any] = json.loads(line)
    return read


def _raised(error: Exception) -> Any:
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_a_line_has_time_level_name_message_fields_and_the_requests_id() -> None:
    token = request_id.set("an-id")
    line = _json(_record("%d of %s", 3, "four", model="m", documents=2))
    request_id.reset(token)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "name": "n",
        "message": "3 of four",
        "model": "m",
        "documents": 2,
        "request_id": "an-id",
    }


def test_a_traceback_is_one_line() -> None:
    line = _json(_record("failed", exc_info=_raised(ValueError("two\nlines"))))
    assert line["exc_info"].startswith("Traceback (most recent call last)")
    assert line["exc_info"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        2**80,
        float("nan"),
        {"a": {1: object()}},
        {1, 2},
        b"bytes",
        ValueError("x"),
        [[]] * 3,
        "\x1b[2J\x9b2J\u202e\r\n",
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_value_makes_a_line(value: object) -> None:
    assert _json(_record("m", value=value))["message"] == "m"
    assert _json(_record("%s", value))["level"] == "INFO"
    assert "\n" not in TextLine().format(_record("%s", value, value=value))


def test_a_value_that_holds_itself_makes_a_line() -> None:
    value: list[object] = []
    value.append(value)
    assert _json(_record("m", value=value))["message"] == "m"


def test_a_message_that_does_not_fit_its_arguments_is_kept() -> None:
    assert _json(_record("%d documents", "many"))["message"] == "%d documents ('many',)"


def test_a_huge_line_is_cut_and_a_huge_traceback_in_its_middle() -> None:
    line = _json(_record("x" * 10_000_000, value="y" * 10_000_000, exc_info=_raised(ValueError("z" * 1_000_000))))
    assert line["message"].startswith("xxx")
    assert "characters left out" in line["message"]
    assert line["exc_info"].startswith("Traceback")
    assert len(TextLine().format(_record("x" * 10_000_000))) < _LONGEST


def test_text_shows_control_characters_instead_of_sending_them() -> None:
    line = TextLine().format(_record("bad\x1b[2J\nnews", path="/a\x9b b", plain="word"))
    assert not _OBEYED & set(line)
    assert line.endswith(r"INFO     bad\x1b[2J\nnews  path='/a\x9b b' plain=word")


_LOGGING = """
import ctypes, logging, os, sys, threading, warnings
from rerankd.telemetry import logs
libc = ctypes.CDLL(None)
with logs.serving("INFO", logs.LogFormat.AUTO):
    logging.getLogger("ours").info("begin", extra={"n": 1})
    os.write(2, b"native one\\nnative two\\n")
    libc.perror(b"from C")
    sys.stderr.write("Traceback (most recent call last):\\n  File x\\nValueError: y\\nnext\\n")
    print("half a line", end="", file=sys.stderr, flush=True)
    warnings.warn("a warning")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    logging.getLogger("uvicorn.error").error("uvicorn says", exc_info=ValueError("one\\ntwo"))
    raise RuntimeError("nobody\\nexpected this")
"""


def _run(code: str, **how: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=60, **how)


def test_whatever_the_process_writes_to_standard_error_is_one_object_a_line() -> None:
    ran = _run(_LOGGING, stderr=subprocess.PIPE)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    said = {line["message"]: line for line in lines}
    assert said["begin"]["n"] == 1
    assert {"native one", "native two"} <= set(said)
    assert said["native one"]["name"] == "stderr"
    assert any(message.startswith("from C") for message in said)
    assert {"Traceback (most recent call last):\n  File x\nValueError: y", "next"} <= set(said)
    assert any("half a line" in message for message in said)
    assert any("a warning" in message for message in said)
    (thread,) = [line for line in lines if "ZeroDivisionError" in line.get("exc_info", "")]
    assert thread["message"].startswith("an exception ended the thread Thread-")
    assert said["uvicorn says"]["exc_info"].endswith("ValueError: one\ntwo")
    assert lines[-1]["level"] == "CRITICAL"
    assert lines[-1]["exc_info"].endswith("RuntimeError: nobody\nexpected this")
    assert ran.returncode == 1


def test_the_last_words_of_a_crash_come_out() -> None:
    code = """
import ctypes
from rerankd.telemetry import logs
libc = ctypes.CDLL(None)
with logs.serving("INFO", logs.LogFormat.JSON):
    libc.perror(b"the last words of a library")
    libc.abort()
"""
    ran = _run(code, stderr=subprocess.PIPE)
    assert ran.returncode == -signal.SIGABRT
    assert ran.stderr.count(b"the last words of a library") == 1
    assert b"Fatal Python error: Aborted" in ran.stderr


def test_half_a_line_that_stays_one_comes_out() -> None:
    code = """
import sys, time
from rerankd.telemetry import logs
with logs.serving("INFO", logs.LogFormat.JSON):
    print("half", end="", file=sys.stderr, flush=True)
    time.sleep(0.5)
    print("other", file=sys.stderr, flush=True)
"""
    ran = _run(code, stderr=subprocess.PIPE)
    assert [json.loads(line)["message"] for line in ran.stderr.splitlines()] == ["half", "other"]


def test_a_configuration_that_cannot_be_used_is_a_line_too() -> None:
    code = "from rerankd import errors\nfrom rerankd.telemetry import logs\n"
    code += "with logs.serving('INFO', logs.LogFormat.JSON):\n"
    ran = _run(code + "    raise errors.ConfigError('no registry')", stderr=subprocess.PIPE)
    assert json.loads(ran.stderr)["message"] == "no registry"
    assert ran.returncode == 2


def test_on_a_terminal_it_is_text_and_standard_error_is_left_alone() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as terminal:
        ran = _run(_LOGGING, stderr=terminal)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert ran.returncode == 1
    assert "INFO     begin  n=1" in shown
    assert "native one\r\nnative two\r\n" in shown
    assert '"level"' not in shown


def test_a_pipe_that_nobody_reads_holds_up_neither_the_work_nor_the_end() -> None:
    code = """
import logging, os
from rerankd.telemetry import logs
with logs.serving("INFO", logs.LogFormat.JSON):
    for _ in range(2000):
        logging.getLogger("ours").info("x" * 500)
        os.write(2, b"y" * 500 + b"\\n")
print("done")
"""
    reading, writing = os.pipe()
    ran = _run(code, stderr=writing, stdout=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    assert (ran.returncode, ran.stdout) == (0, b"done\n")


def test_a_process_without_standard_error_logs_into_nothing() -> None:
    code = "import os\nos.close(2)\nfrom rerankd.telemetry import logs\n"
    code += "with logs.serving('INFO', logs.LogFormat.AUTO):\n    print('on')"
    ran = _run(code, stdout=subprocess.PIPE)
    assert (ran.returncode, ran.stdout) == (0, b"on\n")


def test_secrets_of_other_libraries_messages_are_taken_out() -> None:
    error = ValueError("Illegal header value b'Bearer s3cret', proxy http://u:s3cret@p")
    line = _json(_record("failed", exc_info=_raised(error)))
    assert line["exc_info"].endswith("Illegal header value b'Bearer ***', proxy http://***@p")


def test_secrets_in_other_libraries_own_records_are_taken_out() -> None:
    line = _json(_record("GET %s", "https://cdn/x?X-Amz-Signature=s3cret", name="huggingface_hub.utils"))
    assert line["message"] == "GET https://cdn/x?***"


def test_the_messages_of_onnx_runtime_are_lines_of_the_log(tiny_model: Path) -> None:
    code = f"""
import onnxruntime
from rerankd.telemetry import logs
with logs.serving("INFO", logs.LogFormat.JSON):
    onnxruntime.set_default_logger_severity(0)
    onnxruntime.InferenceSession({str(tiny_model / "model.onnx")!r}, providers=["CPUExecutionProvider"])
"""
    ran = _run(code, stderr=subprocess.PIPE)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert ran.returncode == 0
    assert sum("onnxruntime" in line["message"] for line in lines) > 10
    assert {line["name"] for line in lines} == {"stderr"}
