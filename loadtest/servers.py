"""Starts the real programs that load tests and tests talk to, on free loopback ports, and stops them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import randrange
from typing import Final

import httpx
import psutil

HAPROXY_CONFIGURATION = Path(__file__).resolve().parents[1] / "deploy" / "haproxy" / "haproxy.cfg"
_START_TIMEOUT_S = 180.0
# The kinds of a service's threads.
THREADS: Final = ("event loop", "passes", "texts")


@dataclass(frozen=True, slots=True)
class Server:
    """A running program: where it listens, its process, and the file that its output goes to."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resident_bytes(self) -> int:
        """Memory of the process and of those that it started."""
        process = psutil.Process(self.process.pid)
        return sum(int(one.memory_info().rss) for one in (process, *process.children(recursive=True)))

    def cpu_s(self) -> dict[str, float]:
        """Seconds of CPU time by kind of thread, of the process and of those that it started."""
        processes = [self.process.pid, *(one.pid for one in psutil.Process(self.process.pid).children(recursive=True))]
        return dict(sum((Counter(cpu_s_of(one)) for one in processes), start=Counter[str]()))


def cpu_s_of(process: int) -> dict[str, float]:
    """Seconds of CPU time of a service's threads by kind. Those that read and write texts have a lower priority."""
    seconds = dict.fromkeys(THREADS, 0.0)
    usual = os.getpriority(os.PRIO_PROCESS, process)
    for thread in Path(f"/proc/{process}/task").glob("*"):
        with suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, int(thread.name))
            loop, passes, texts = THREADS
            kind = loop if int(thread.name) == process else passes if niceness <= usual else texts
            seconds[kind] += float((thread / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    return seconds


def free_port() -> int:
    """A port that nobody listens on, below those that systems hand out themselves: until the server is there that is to
    have it, no connection gets it.
    """
    while True:
        port = randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def rerankd_server(folder: Path, registry: Path, **environment: str) -> Iterator[Server]:
    """`rerankd serve` over a registry, once it answers `/health`; `environment` is added to the process's own."""
    with rerankd_at(free_port(), folder, registry, environment) as server:
        yield server


@contextmanager
def rerankd_at(
    port: int, folder: Path, registry: Path, environment: Mapping[str, str], *, program: str = "rerankd"
) -> Iterator[Server]:
    """The same on a port of the caller's; `program` is a module with the same command line."""
    command = [sys.executable, "-m", program, "serve", "--port", str(port), "--registry", str(registry)]
    with running(command, port, folder / f"rerankd-{port}.log", environment) as server:
        wait(server, lambda: httpx.get(f"{server.url}/health", timeout=5).status_code == 200)
        yield server


def wait_until_ready(server: Server, *, timeout_s: float = _START_TIMEOUT_S) -> None:
    """Wait until every model of a `rerankd_server` has passed its canary."""
    wait(server, lambda: httpx.get(f"{server.url}/ready", timeout=5).status_code == 200, timeout_s=timeout_s)


@contextmanager
def haproxy_server(folder: Path, replicas: Sequence[int]) -> Iterator[Server]:
    """HAProxy with the configuration of `deploy/haproxy` before services on these ports, once it answers; its
    statistics are at `/stats;csv` of the same port.

    Raises:
        RuntimeError: the program is not installed.
    """
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise RuntimeError("the program haproxy is not installed; tests/install_servers.sh installs it")
    port = free_port()
    configuration = folder / f"haproxy-{port}.cfg"
    configuration.write_text(haproxy_configuration(port, replicas), encoding="utf-8")
    command = [program, "-db", "-f", str(configuration)]
    with running(command, port, folder / f"haproxy-{port}.log", {}) as server:
        wait(server, lambda: httpx.get(f"{server.url}/stats", timeout=5).status_code == 200)
        yield server


def haproxy_configuration(port: int, replicas: Sequence[int]) -> str:
    """The deployment's configuration with another port and, in place of what DNS finds, these replicas."""
    text = HAPROXY_CONFIGURATION.read_text(encoding="utf-8")
    servers = "".join(f"    server r{one} 127.0.0.1:{one} check\n" for one in replicas)
    for pattern, replacement in (
        (r"^    bind :8000\n", f"    bind 127.0.0.1:{port}\n    stats enable\n    stats uri /stats\n"),
        (r"^    server-template rerankd- 8 rerankd:8000 check resolvers .+\n", servers),
    ):
        text, found = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert found == 1, pattern
    return text


@contextmanager
def redis_server(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """A Redis without persistence, once it answers.

    Raises:
        RuntimeError: the program is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("the program redis-server is not installed; tests/install_servers.sh installs it")
    port = port or free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    with running(command, port, folder / f"redis-{port}.log", {}) as server:
        wait(server, lambda: _answers_ping(port))
        yield server


def _answers_ping(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")


@contextmanager
def running(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str], *, folder: Path | None = None
) -> Iterator[Server]:
    """A program and whatever it starts; all of it is killed at the end. `folder` is where it runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output, cwd=folder)
    try:
        yield Server(port, process, log)
    finally:
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Its children too: servers of several processes leave them behind when they are killed."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.kill()
    process.wait(timeout=30)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def wait(server: Server, answers: Callable[[], bool], *, timeout_s: float = _START_TIMEOUT_S) -> None:
    """Wait until `answers` is true; a connection that is refused means not yet.

    Raises:
        AssertionError: the program ended, or took too long; with its output.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if answers():
                return
        except (OSError, httpx.TransportError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{server.process.args!r} did not start:\n{server.log.read_text()}")
