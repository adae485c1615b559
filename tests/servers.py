"""The servers of the load tests, for tests: what is missing on this machine skips the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest import servers
from loadtest.servers import Server, free_port, rerankd_server, running, wait_until_ready
from tests.requirements import require_program

__all__ = ["Server", "free_port", "redis_server", "rerankd_server", "running", "wait_until_ready"]


@contextmanager
def redis_server(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """A Redis without persistence, once it answers; skips the test where the program is missing."""
    require_program("redis-server")
    with servers.redis_server(folder, *options, port=port) as server:
        yield server
