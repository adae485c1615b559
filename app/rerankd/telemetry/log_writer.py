"""Writes lines to a file descriptor from its own thread, so that a log call never waits for a reader.

The buffer for a slow reader is limited in bytes. Further lines are dropped and counted. When the reader is back, a line
says how many.
"""

import os
import select
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

MAX_HELD_BYTES: Final = 8 * 2**20
_AT_ONCE_BYTES: Final = 64 * 1024


class LogWriter:
    """Only one thread at a time may call `write`. `report` formats the number of dropped lines as a line."""

    def __init__(
        self, descriptor: int, *, report: Callable[[int], bytes], max_held_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self.descriptor = descriptor
        self._report = report
        self._max_held_bytes = max_held_bytes
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        # Each counter is changed by one thread only: the first two by who writes, the others by the thread.
        self._taken_bytes = 0
        self._refused_lines = 0
        self._done_bytes = 0
        self._lost_lines = 0
        self._reported = 0
        # A daemon, so that a reader that never comes back does not keep the process alive.
        self._thread = Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The total number of dropped lines."""
        return self._refused_lines + self._lost_lines

    def write(self, line: bytes) -> None:
        """Queue a line, which ends with a line break. Never waits."""
        if self._taken_bytes - self._done_bytes + len(line) > self._max_held_bytes:
            self._refused_lines += 1
            return
        self._taken_bytes += len(line)
        self._lines.put(line)

    def close(self, *, timeout_s: float) -> bool:
        """Write the queued lines within a time, and say whether all were written."""
        self._lines.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        open_ = True
        while open_:
            lines, open_ = self._next_lines()
            content = b"".join(lines)
            self._write_all(content)
            self._done_bytes += len(content)
            self._report_dropped()

    def _report_dropped(self) -> None:
        dropped = self._refused_lines
        if dropped > self._reported:
            self._reported = dropped
            self._write_all(self._report(dropped))

    def _next_lines(self) -> tuple[list[bytes], bool]:
        """Wait for lines and write some of them. False after the last one."""
        lines: list[bytes] = []
        length = 0
        line = self._lines.get()
        while line is not None:
            lines.append(line)
            length += len(line)
            if length >= _AT_ONCE_BYTES:
                break
            try:
                line = self._lines.get_nowait()
            except Empty:
                break
        return lines, line is not None

    def _write_all(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self.descriptor, view) :]
            except BlockingIOError:
                # Another program with the same terminal or pipe made it non-blocking.
                self._wait_until_writable()
            except OSError:
                # The reader is gone, or the disk is full: these lines are lost.
                self._lost_lines += content.count(b"\n")
                return

    def _wait_until_writable(self) -> None:
        poll = select.poll()
        with suppress(OSError):
            poll.register(self.descriptor, select.POLLOUT)
            poll.poll(1000)
