"""The process with the engines, which starts the front-end processes and keeps them running.

A front end that ends is started again, and what it held is released. If this process ends, so do all front ends: the
channel to it is lost, and whatever started the service starts it again.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from socket import AF_UNIX, SO_RCVBUF, SO_SNDBUF, SOCK_STREAM, SOL_SOCKET, socket, socketpair
from time import perf_counter
from typing import Final

from rerankd.api.front import FrontStart
from rerankd.api.server import tune_garbage_collector
from rerankd.api.signals import ignore_harmless_signals, reloading_on_hangup
from rerankd.api.transport.listening import listen
from rerankd.concurrency.channel import Channel, Head, Reply
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError, Unavailable
from rerankd.gateway.administration import read_keys
from rerankd.gateway.central_rates import CentralBuckets
from rerankd.serving.processes.scheduler import FrontSession, Scheduler
from rerankd.telemetry.logs import log_descriptor
from rerankd.telemetry.merged_metrics import Family, counted, merge, told_families
from rerankd.telemetry.metrics import PrometheusObserver

logger = logging.getLogger(__name__)

FRONT_END: Final = (sys.executable, "-m", "rerankd.api.front")
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# What a socket pair holds of requests and answers before a write waits.
_SOCKET_BYTES: Final = 1 << 22
# A front end that ends so soon after its start is started again only after a pause.
_SOON_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
# How long a front end may take beyond its own time to finish requests.
_LATE_S: Final = 10.0
_METRICS_S: Final = 2.0


@dataclass(slots=True)
class _Running:
    """A front end that runs. `up`: it serves."""

    process: asyncio.subprocess.Process
    channel: Channel
    session: FrontSession
    up: bool = False
    families: list[Family] = field(default_factory=list)


def check_cores(cores: Sequence[frozenset[int]]) -> None:
    """Check that each process can have its cores.

    Raises:
        ConfigError: one names none that this process may use.
    """
    known = os.sched_getaffinity(0)
    for one in cores:
        if not one & known:
            raise ConfigError(
                f"RERANKD_PROCESSES_CORES: this service may use cores {sorted(known)}, and none of {sorted(one)}"
            )


class Fronts:
    """All front ends of this service."""

    def __init__(
        self,
        settings: Settings,
        given: Mapping[str, object],
        scheduler: Scheduler,
        observer: PrometheusObserver,
        command: Sequence[str],
    ) -> None:
        self._settings = settings
        self._given = {name: value for name, value in given.items() if value is not None}
        self._scheduler = scheduler
        self._observer = observer
        self._command = command
        self._buckets = CentralBuckets()
        self._running: dict[int, _Running] = {}
        self._ended: list[Family] = []
        self._draining = asyncio.Event()
        self._listening: list[list[socket]] = []

    async def run(self) -> None:
        """Run until all have drained.

        Raises:
            ConfigError: one cannot start; its own line in the log says why.
        """
        port = self._settings.port
        for _ in range(self._settings.processes):
            self._listening.append(listen(self._settings.host, port))
            port = port or self._listening[0][0].getsockname()[1]
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, self._stop)
        try:
            async with reloading_on_hangup(self._hang_up):
                await asyncio.gather(*(self._keep(number) for number in range(self._settings.processes)))
        finally:
            # None is started again.
            self._draining.set()
            for number in _STOPPING:
                loop.remove_signal_handler(number)
            for running in self._running.values():
                with suppress(ProcessLookupError):
                    running.process.kill()
            self._close_port()

    async def _keep(self, number: int) -> None:
        """Start a front end again whenever it ends. If it never served, its configuration cannot be used; if it did,
        the others still serve by the one before.
        """
        was_up, pause_s = False, _FIRST_PAUSE_S
        while not self._draining.is_set():
            started = perf_counter()
            running = await self._start(number, speaks=number == 0 and not was_up)
            status = await self._end_of(running)
            was_up = was_up or running.up
            self._forget(number, running)
            if self._draining.is_set():
                return
            if status == 2 and not was_up:
                raise ConfigError(f"front-end process {number} cannot start; its line in the log says why")
            logger.error("front-end process ended and is started again", extra={"front": number, "status": status})
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if perf_counter() - started < _SOON_S else 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._draining.wait()
            pause_s = max(pause_s, _FIRST_PAUSE_S / 2)

    async def _start(self, number: int, *, speaks: bool) -> _Running:
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        for end in (ours, theirs):
            end.setblocking(False)  # noqa: FBT003 - socket's own
            end.setsockopt(SOL_SOCKET, SO_SNDBUF, _SOCKET_BYTES)
            end.setsockopt(SOL_SOCKET, SO_RCVBUF, _SOCKET_BYTES)
        channel = Channel(f"front-end process {number}", lost=lambda: None)
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        session = self._scheduler.attend(channel)
        listening = tuple(one.fileno() for one in self._listening[number])
        start = FrontStart(number, theirs.fileno(), listening, self._given, speaks)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                start.dumped(),
                pass_fds=(theirs.fileno(), *listening),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=log_descriptor(),
                # What a terminal tells all processes in front of it, this one tells them.
                start_new_session=True,
            )
        running = self._running[number] = _Running(process, channel, session)
        self._buckets.attend(channel)
        channel.notices["up"] = lambda _: setattr(running, "up", True)
        channel.calls |= {"everywhere": self._everywhere, "metrics": self._metrics}
        if self._draining.is_set():
            process.terminate()
        return running

    async def _end_of(self, running: _Running) -> int:
        """Its exit status. One that does not end in time is killed."""
        ending = asyncio.create_task(running.process.wait())
        draining = asyncio.create_task(self._draining.wait())
        await asyncio.wait({ending, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if not ending.done():
            patience_s = self._settings.shutdown_delay_s + self._settings.shutdown_timeout_s + _LATE_S
            await asyncio.wait({ending}, timeout=patience_s)
            if not ending.done():
                logger.error("a front-end process did not end, and is killed")
                running.process.kill()
        return await ending

    def _forget(self, number: int, running: _Running) -> None:
        """Release what a front end held, and keep what it counted."""
        del self._running[number]
        running.session.end()
        running.channel.close()
        self._ended = merge([self._ended, counted(running.families)])

    def _stop(self) -> None:
        """On the first signal all front ends drain, on the second they stop at once."""
        again, said = self._draining.is_set(), "stop"
        if not again:
            said = "drain"
            self._draining.set()
            asyncio.get_running_loop().call_later(self._settings.shutdown_delay_s, self._close_port)
        for running in self._running.values():
            if running.up:
                running.channel.tell(said, {})
            else:
                running.process.terminate()

    def _close_port(self) -> None:
        """Front ends have these sockets too, and close them when they stop to listen."""
        for sockets in self._listening:
            for listening in sockets:
                listening.close()
        self._listening.clear()

    async def _hang_up(self) -> None:
        """One front end reads models and keys again, and so has all others do it."""
        up = [running for running in self._running.values() if running.up]
        if up:
            up[0].channel.tell("hang_up", {})

    async def _everywhere(self, told: Head, _: bytes) -> Reply:
        """Run an operator's command in all front ends. Those in which it failed although it did not in others are
        started again, so that all serve the same.
        """
        if told["command"] == "load":
            self._scheduler.load_again(told["model"])
        up = [running for running in self._running.values() if running.up]
        outcomes = await asyncio.gather(
            *(running.channel.call("command", told) for running in up), return_exceptions=True
        )
        failed = [(one, bad) for one, bad in zip(up, outcomes, strict=True) if isinstance(bad, BaseException)]
        if len(failed) == len(up):
            raise failed[0][1] if failed else Unavailable("no front-end process is up: the log says why")
        for running, error in failed:
            logger.error("a command failed in one front-end process, which is started again", exc_info=error)
            running.process.terminate()
        return {}, b""

    async def _metrics(self, _told: Head, _body: bytes) -> Reply:
        """Of all processes. One that does not answer in time counts as it was last seen."""
        await asyncio.gather(*(self._ask_metrics(running) for running in self._running.values() if running.up))
        processes = [self._ended, told_families(self._observer.registry)]
        processes += [running.families for running in self._running.values()]
        return {"families": merge(processes)}, b""

    async def _ask_metrics(self, running: _Running) -> None:
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(_METRICS_S):
                answer, _ = await running.channel.call("own metrics", {})
                running.families = answer["families"]


async def serve(settings: Settings, given: Mapping[str, object], command: Sequence[str] = FRONT_END) -> None:
    """Serve by front-end processes until SIGTERM, SIGINT or SIGQUIT; `given` is what the command line said.

    Raises:
        ConfigError: keys, registry or address cannot be used.
    """
    ignore_harmless_signals()
    read_keys(settings)
    if settings.processes_cores:
        check_cores(settings.processes_cores)
        os.sched_setaffinity(0, settings.processes_cores[-1])
    observer = PrometheusObserver(names_keys=settings.private)
    async with Scheduler.running(settings, observer) as scheduler:
        tune_garbage_collector()
        await Fronts(settings, given, scheduler, observer, command).run()
