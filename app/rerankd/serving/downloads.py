"""Says in the log how far a download is: which repository, how many bytes, how fast. Knows the hub's client by its
`tqdm_class` alone.
"""

import logging
import sys
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Any, Final

from tqdm import tqdm

logger = logging.getLogger(__name__)

_FIRST_LINE_S: Final = 1.0
_ON_A_TERMINAL_S: Final = 3.0
_ELSEWHERE_S: Final = 15.0
_BAR: Final = 20


class DownloadProgress:
    """Logs a line at intervals. The client's threads call it."""

    def __init__(self, name: str, *, clock: Callable[[], float] = monotonic, interval_s: float | None = None) -> None:
        self._name = name
        self._clock = clock
        self._interval_s = interval_s or (_ON_A_TERMINAL_S if sys.stderr.isatty() else _ELSEWHERE_S)
        self._started = clock()
        self._next = self._started + min(_FIRST_LINE_S, self._interval_s)
        self._lock = Lock()
        self._done = 0.0
        self._total = 0.0

    def advance(self, done: float, total: float) -> None:
        """Take how many bytes have come of how many. Files become known one after another, so the total may grow."""
        with self._lock:
            self._done, self._total = max(self._done, done), max(self._total, total)
            now = self._clock()
            if now < self._next or not self._done:
                return
            self._next = now + self._interval_s
            text = self._line(now)
        logger.info(text)

    def finish(self) -> None:
        """Sum up, if anything had to be fetched."""
        if self._done:
            took_s = max(self._clock() - self._started, 1e-3)
            logger.info("downloaded %s: %s in %.1f s", self._name, readable(self._done), took_s)

    def bar_class(self) -> type["tqdm[Any]"]:
        """What the client is given to draw with: it draws nothing, and counts here."""
        progress = self

        class Counted(tqdm):  # type: ignore[type-arg] # it cannot be subscripted when the program runs
            monitor_interval = 0  # no thread that watches

            def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as the client calls it
                options.pop("name", None)
                super().__init__(*arguments, **{**options, "file": _NOWHERE, "disable": False})

            def display(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
                """Draw nothing."""

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0
                if self.unit == "B":
                    progress.advance(self.n, self.total or 0)

        return Counted

    def _line(self, now: float) -> str:
        speed = f"{readable(self._done / max(now - self._started, 1e-3))}/s"
        if self._total < self._done:
            return f"downloading {self._name}: {readable(self._done)}, {speed}"
        share = self._done / self._total
        bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
        return f"downloading {self._name}: [{bar}] {share:.0%} of {readable(self._total)}, {speed}"


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


_NOWHERE: Final = _Nowhere()


def readable(count: float) -> str:
    """Bytes in decimal units, as hubs and disks count them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
