"""Lines are written by a thread: in order, all of them while somebody reads, and without waiting when nobody does."""

import os
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

import pytest

from rerankd.telemetry.log_writer import LogWriter


def _report(dropped: int) -> bytes:
    return b"dropped %d\n" % dropped


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    content = b""
    while wanted not in content:
        content += os.read(descriptor, 1 << 20)
    return content


def _read_to_the_end(writer: LogWriter, pipe: tuple[int, int]) -> bytes:
    """Everything that is still to come."""
    reading, writing = pipe
    os.set_blocking(reading, False)
    content = b""
    ends = monotonic() + 30
    while not writer.close(timeout_s=0.01):
        assert monotonic() < ends
        with suppress(BlockingIOError):
            content += os.read(reading, 1 << 20)
    os.close(writing)
    os.set_blocking(reading, True)
    return content + b"".join(iter(lambda: os.read(reading, 1 << 20), b""))


def test_lines_come_out_in_their_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, report=_report)
    lines = [b"line %d\n" % number for number in range(1000)]
    for line in lines:
        writer.write(line)
    assert writer.close(timeout_s=10)
    assert _read_until(reading, b"line 999\n") == b"".join(lines)
    assert writer.dropped == 0


def test_a_reader_that_stops_holds_nobody_up_and_what_is_held_is_bounded(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    line = b"x" * 999 + b"\n"
    writer = LogWriter(writing, report=_report, max_held_bytes=100_000)
    for _ in range(1000):
        writer.write(line)
    assert not writer.close(timeout_s=0.1), "nobody read"
    # 64 KiB are in the pipe, and as many in the thread's hands
    assert 700 <= writer.dropped <= 900
    written = _read_to_the_end(writer, pipe)
    assert written.count(b"x\n") == 1000 - writer.dropped
    assert written.count(b"dropped %d\n" % writer.dropped) == 1


def test_when_the_reader_is_back_a_line_says_how_many_were_lost_and_the_log_goes_on(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, report=_report, max_held_bytes=200_000)
    for _ in range(500):
        writer.write(b"x" * 999 + b"\n")
    dropped = writer.dropped
    assert dropped > 0
    assert _read_until(reading, b"dropped %d\n" % dropped)
    writer.write(b"after\n")
    assert _read_to_the_end(writer, pipe).endswith(b"after\n")


def test_a_reader_that_is_gone_for_good_is_counted_and_ends_nothing(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    writer = LogWriter(writing, report=_report)
    for _ in range(10):
        writer.write(b"line\n")
    assert writer.close(timeout_s=10)
    assert writer.dropped == 10


def test_a_pipe_that_another_program_made_non_blocking_gets_everything(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    os.set_blocking(writing, False)
    writer = LogWriter(writing, report=_report)
    for number in range(300):
        writer.write(b"%999d\n" % number)
    lines = _read_to_the_end(writer, pipe).split(b"\n")
    assert [int(line) for line in lines[:-1]] == list(range(300))
    assert writer.dropped == 0
