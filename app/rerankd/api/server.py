"""Runs the HTTP application until a signal says stop."""

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from socket import socket
from typing import TYPE_CHECKING, Final

import uvicorn
from fastapi import FastAPI

from rerankd.api.announcing import announce, warn_if_exposed
from rerankd.api.app import Reading, create_app
from rerankd.api.lifecycle import Lifecycle
from rerankd.api.signals import ignore_harmless_signals, reloading_on_hangup
from rerankd.api.transport.connection import Connection
from rerankd.api.transport.connection_limiter import ConnectionLimiter, ConnectionLimits
from rerankd.config.extras import missing
from rerankd.config.settings import Settings
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.running import running_administration
from rerankd.jobs.jobs import Jobs
from rerankd.jobs.running import running_jobs
from rerankd.serving.faults import faults_on_signal
from rerankd.telemetry.metrics import PrometheusObserver

if TYPE_CHECKING:
    from rerankd.api.front import FrontEnd
    from rerankd.telemetry.otel import Tracing

logger = logging.getLogger(__name__)

# How long a tokenizing thread may keep the event loop waiting. With Python's default of 5 ms cached answers are slower.
_SWITCH_INTERVAL_S: Final = 0.001
# Open files other than connections: models, Redis, the log.
_OTHER_FILES: Final = 256

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


async def serve(settings: Settings, front: "FrontEnd | None" = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGQUIT, then drain. SIGHUP reads the API keys and the registry again. `front`:
    this is one of several front-end processes.

    Raises:
        ConfigError: the registry or the cache URL is unusable.
    """
    ignore_harmless_signals()
    observer = PrometheusObserver(names_keys=settings.private)
    lifecycle = Lifecycle()
    async with (
        running_administration(settings, observer, channel=None if front is None else front.channel) as (
            gateway,
            administration,
        ),
        reloading_on_hangup(administration.hang_up),
        traces(settings) as tracing,
        _jobs(settings, gateway, observer) as (reading, jobs),
    ):
        metrics = None if front is None else front.metrics_with(observer)
        app = create_app(
            settings, gateway, observer, lifecycle, administration, tracing, reading=reading, jobs=jobs, metrics=metrics
        )
        app.openapi()  # takes a tenth of a second, which no request should
        limiter = ConnectionLimiter(_connection_limits(settings), observer)
        _allow_open_files(limiter.limits.max_connections + limiter.limits.probe_connections + _OTHER_FILES)
        server = DrainingServer(_uvicorn(app, settings, limiter), lifecycle, delay_s=settings.shutdown_delay_s)
        announcing = asyncio.create_task(_announce(server, gateway, settings, front), name="announce")
        tune_garbage_collector()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            with faults_on_signal() if settings.debug_faults else nullcontext():
                await server.serve(sockets=None if front is None else front.attach(server))
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)


@asynccontextmanager
async def _jobs(
    settings: Settings, gateway: Gateway, observer: PrometheusObserver
) -> AsyncIterator[tuple[Reading, Jobs | None]]:
    """The jobs that this process works on, and how their lines are read, in turns with requests."""
    reading = Reading.within(settings, gateway)
    lines = reading.line_answers(settings, gateway)
    async with running_jobs(settings, gateway, lines, observer, endpoints=lines.endpoints) as jobs:
        yield reading, jobs


@asynccontextmanager
async def traces(settings: Settings) -> "AsyncIterator[Tracing | None]":
    """What traces requests; None if nothing does.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    if settings.traces == "none":
        yield None
        return
    try:
        from rerankd.telemetry.otel import Tracing  # noqa: PLC0415 - packages of the extra `otel`
    except ModuleNotFoundError as error:
        raise missing(str(error.name), extra="otel", of=f"RERANKD_TRACES={settings.traces}") from None
    tracing = Tracing.to_collector()
    try:
        yield tracing
    finally:
        await tracing.close()


async def _announce(server: "DrainingServer", gateway: Gateway, settings: Settings, front: "FrontEnd | None") -> None:
    await server.listening.wait()
    if front is not None and not front.speaks:
        return
    keyed = not gateway.keys.open
    port: int = server.servers[0].sockets[0].getsockname()[1]
    if not keyed:
        warn_if_exposed(settings.host, port)
    await announce(gateway.service.models, settings.host, port, keyed=keyed, private=settings.private)


def tune_garbage_collector() -> None:
    """Exclude modules and models from garbage collection, and collect young objects a few at a time.

    With the default thresholds a request of thousands of documents blocked the event loop for 0.1 s; collecting 50,000
    young objects at once took 7 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 10, 500)


def _allow_open_files(needed: int) -> None:
    """Raise this process's limit of open files, of which each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        logger.warning(
            "RERANKD_MAX_CONNECTIONS needs %d open files, and this process may have %d; raise `ulimit -n` or lower it",
            needed,
            allowed,
        )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        max_connections=settings.max_connections,
        max_per_address=settings.max_connections_per_address,
        head_timeout_s=settings.head_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        write_timeout_s=settings.write_timeout_s,
    )


def _uvicorn(app: FastAPI, settings: Settings, limiter: ConnectionLimiter) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(Connection, limiter=limiter),  # type: ignore[arg-type] # uvicorn only calls it
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(settings.shutdown_timeout_s),
    )


class DrainingServer(uvicorn.Server):
    """On the first signal turns `/ready` false, and after `delay_s` stops listening and finishes running requests. On
    the second signal it stops at once.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, *, delay_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._delay_s = delay_s
        self.listening = asyncio.Event()
        self.is_front = False

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Open the port, and set `listening`."""
        await super().startup(sockets)
        if self.started:
            self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, do not raise the signal again afterwards: models and caches must be closed first."""
        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in _STOPPING:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._lifecycle.draining and self.is_front:
            return  # a supervisor may signal all processes, and the scheduler tells this one too
        if self._lifecycle.draining:
            self.stop_now()
        else:
            self.drain()

    def stop_now(self) -> None:
        """Stop without waiting for running requests."""
        self.force_exit = self.should_exit = True

    def drain(self) -> None:
        """Begin to drain, unless that has begun."""
        if self._lifecycle.draining:
            return
        logger.info("stopping: running requests will finish; new ones are accepted for another %g s", self._delay_s)
        self._lifecycle.draining = True
        asyncio.get_running_loop().call_later(self._delay_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True
