"""One front-end process: it takes connections, reads, tokenizes and answers; the scheduler has the engines.

`rerankd.api.fronts` starts it, and gives it an end of a socket pair and sockets that listen already.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from dataclasses import asdict, dataclass
from math import ceil
from socket import socket
from threading import Timer
from typing import Any, Final

from pydantic import SecretStr

from rerankd.api.ops import CollectMetrics
from rerankd.api.server import DrainingServer, serve
from rerankd.api.service_process import run_service
from rerankd.cache import part_of
from rerankd.concurrency.channel import Channel, Head, Reply
from rerankd.config.settings import Settings, read_settings
from rerankd.telemetry.merged_metrics import MergedMetrics, told_families
from rerankd.telemetry.metrics import PrometheusObserver

logger = logging.getLogger(__name__)

# How long a front end may take to end once the scheduler is gone.
_LAST_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class FrontStart:
    """What a front end is started with: file descriptors of its end of the channel and of its sockets, what the
    command line said beside the environment, and whether it writes the line that says where the service is.
    """

    number: int
    control: int
    listening: tuple[int, ...]
    given: dict[str, Any]
    speaks: bool

    def dumped(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def read(cls, text: str) -> "FrontStart":
        return cls(**json.loads(text))


class FrontEnd:
    """What a server has beside what one of a single process has."""

    def __init__(self, start: FrontStart) -> None:
        self.speaks = start.speaks
        self.channel = Channel("the scheduler process", lost=self._end)
        self._sockets = [socket(fileno=number) for number in start.listening]
        self._server: DrainingServer | None = None
        self._closed = False

    async def connect(self, control: int) -> None:
        """Open the channel."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self.channel, sock=socket(fileno=control))

    def attach(self, server: DrainingServer) -> list[socket]:
        """Let the scheduler stop this server, and return what it listens on."""
        self._server = server
        server.is_front = True
        self.channel.notices |= {
            "drain": lambda _: server.drain(),
            "stop": lambda _: server.stop_now(),
            "hang_up": lambda _: signal.raise_signal(signal.SIGHUP),
        }
        self.channel.tell("up", {})
        return self._sockets

    def metrics_with(self, observer: PrometheusObserver) -> CollectMetrics:
        """What collects the metrics of all processes. This one's are asked for like the others'."""

        def own(_told: Head, _body: bytes) -> Reply:
            return {"families": told_families(observer.registry)}, b""

        async def collect() -> MergedMetrics:
            answer, _ = await self.channel.call("metrics", {})
            return MergedMetrics(answer["families"])

        self.channel.calls["own metrics"] = own
        return collect

    def close(self) -> None:
        """Hang up: this front end has drained."""
        self._closed = True
        self.channel.close()

    def _end(self) -> None:
        """Without a scheduler nothing can be answered."""
        if self._closed:
            return
        logger.critical("the process with the engines is gone, and so this front-end process ends")
        if self._server is None:
            logging.shutdown()
            os._exit(1)
        self._server.stop_now()
        timer = Timer(_LAST_S, os._exit, [1])
        timer.daemon = True
        timer.start()


def share_of(settings: Settings) -> Settings:
    """What one front end may hold, of what the service may."""
    processes = settings.processes
    addresses = settings.max_connections_per_address
    return settings.model_copy(
        update={
            "cache_url": SecretStr(part_of(settings.cache_url.get_secret_value(), processes=processes)),
            "max_held_bytes": max(1024, settings.max_held_bytes // processes),
            "max_connections": ceil(settings.max_connections / processes),
            "max_connections_per_address": None if addresses is None else ceil(addresses / processes),
        }
    )


async def _serve(settings: Settings, start: FrontStart) -> None:
    front = FrontEnd(start)
    await front.connect(start.control)
    await serve(share_of(settings), front)
    front.close()


def main() -> None:
    """Run the front end that the arguments describe."""
    start = FrontStart.read(sys.argv[1])
    settings = read_settings(**start.given)
    if settings.processes_cores:
        os.sched_setaffinity(0, settings.processes_cores[start.number])
    run_service(settings, _serve(settings, start))


if __name__ == "__main__":
    main()
