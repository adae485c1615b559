"""Starts the real programs that tests talk to, on free loopback ports, and stops them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.requirements import require_program

_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running program: where it listens, its process, and the file that its output goes to."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def rerankd_server(folder: Path, registry: Path, **environment: str) -> Iterator[Server]:
    """`rerankd serve` over a registry, once it answers `/health`; `environment` is added to the process's own."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--registry", str(registry)]
    with _running(command, port, folder / f"rerankd-{port}.log", environment) as server:
        _wait(server, lambda: httpx.get(f"{server.url}/health", timeout=5).status_code == 200)
        yield server


def wait_until_ready(server: Server) -> None:
    """Wait until every model of a `rerankd_server` passes its canary."""
    _wait(server, lambda: httpx.get(f"{server.url}/ready", timeout=20).status_code == 200)


@contextmanager
def redis_server(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """A Redis without persistence, once it answers; skips the test where the program is missing."""
    port = port or free_port()
    program = require_program("redis-server")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    with _running(command, port, folder / f"redis-{port}.log", {}) as server:
        _wait(server, lambda: _answers_ping(port))
        yield server


def _answers_ping(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")


@contextmanager
def _running(command: list[str], port: int, log: Path, environment: dict[str, str]) -> Iterator[Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        yield Server(port, process, log)
    finally:
        process.kill()
        process.wait(timeout=30)


def _wait(server: Server, answers: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if answers():
                return
        except (OSError, httpx.TransportError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{server.process.args!r} did not start:\n{server.log.read_text()}")
