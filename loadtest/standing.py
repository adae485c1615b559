"""A contestant's server, which runs during the whole comparison and is restarted if it does not become idle."""

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from time import perf_counter
from typing import Final

import httpx
import psutil

from loadtest.contestants import Contestant, Weights
from loadtest.servers import Server, free_port, running, wait
from rerankd.tools.benchmark.connection import Target

START_TIMEOUT_S: Final = 300.0
_IDLE_CORES: Final = 0.1
_GLANCE_S: Final = 0.5


class Standing:
    def __init__(self, contestant: Contestant, weights: Weights, folder: Path) -> None:
        self._contestant = contestant
        self._weights = weights
        self._folder = folder
        self._stack = ExitStack()
        self._server: Server | None = None
        self.start_s = 0.0

    def start(self) -> None:
        """Start and wait until it can rank.

        Raises:
            AssertionError: the program ended, or took too long.
            CalledProcessError: its environment cannot be installed.
        """
        python = self._contestant.python()
        started = perf_counter()
        port = free_port()
        place = self._contestant.folder(self._weights) if self._contestant.folder else None
        command = self._contestant.command(python, self._weights, port)
        log = self._folder / f"{port}.log"
        with ExitStack() as stack:
            server = stack.enter_context(running(command, port, log, self._contestant.environment, folder=place))
            address = f"{server.url}{self._contestant.ready}"
            wait(server, lambda: httpx.get(address, timeout=20).status_code == 200, timeout_s=START_TIMEOUT_S)
            self._stack = stack.pop_all()
        self._server = server
        self.start_s = max(self.start_s, perf_counter() - started)

    def stop(self) -> None:
        self._stack.close()
        self._server = None

    @property
    def target(self) -> Target:
        assert self._server is not None
        return Target.from_url(self._server.url, path=self._contestant.path)

    def settle(self, *, within_s: float) -> None:
        """Wait until the server is idle, and restart it if that takes too long."""
        ends = perf_counter() + within_s
        while perf_counter() < ends:
            if self._busy_cores() < _IDLE_CORES:
                return
        self.stop()
        self.start()

    def _busy_cores(self) -> float:
        """CPU cores that the server uses now or would if it got them, its children included."""
        assert self._server is not None
        before = wanted_seconds(self._server.process.pid)
        started = perf_counter()
        time.sleep(_GLANCE_S)
        return (wanted_seconds(self._server.process.pid) - before) / (perf_counter() - started)


def wanted_seconds(pid: int) -> float:
    """Seconds that the threads of a process and of those that it started have run, or waited for a core, until now.
    Elsewhere than on Linux the waiting is not known.
    """
    process = psutil.Process(pid)
    return sum(_wanted_alone(one) for one in (process, *process.children(recursive=True)))


def _wanted_alone(process: psutil.Process) -> float:
    if not psutil.LINUX:
        times = process.cpu_times()
        return float(times.user + times.system)
    total_ns = 0
    for thread in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it ended at this moment
            ran, waited, _ = thread.read_text().split()
            total_ns += int(ran) + int(waited)
    return total_ns / 1e9
