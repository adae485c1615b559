"""One replica: the gateway and the application of `rerankd serve`, behind Ray instead of a socket."""

import asyncio
from collections.abc import Collection
from time import perf_counter
from typing import Any, Final

from ray import serve

from rerankd.api.app import create_app
from rerankd.api.lifecycle import Lifecycle
from rerankd.api.server import traces, tune_garbage_collector
from rerankd.config.settings import read_settings
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.running import running_administration
from rerankd.serving.model import Status
from rerankd.serving.ray.messages import Application, HttpAnswer, HttpCall, answer_of
from rerankd.serving.ray.scaling import BUSY, WAITING_S
from rerankd.telemetry import logs
from rerankd.telemetry.metrics import PrometheusObserver

# A canary fails for a moment under load; a replica that is replaced loads its models again.
_UNREADY_S: Final = 60.0


class Replica:
    """Serves some models of the registry. Ray sends requests once all of them have passed their canary."""

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: dict[str, Any], models: Collection[str]
    ) -> None:
        """`models` empty: all of the registry.

        Raises:
            ConfigError: the settings are unusable.
            ModelNotReady: a model cannot be loaded; the message says why.
        """
        self._settings = read_settings(**settings)
        logs.configure(self._settings.log_level, logs.LogFormat(self._settings.log_format))
        self._only: Collection[str | None] | None = models or None
        self._observer = PrometheusObserver(names_keys=self._settings.private)
        self._lifecycle = Lifecycle()
        self._stopping = asyncio.Event()
        self._started: asyncio.Future[tuple[Gateway, Application]] = asyncio.get_running_loop().create_future()
        self._ready_at = perf_counter()
        self._computed = (perf_counter(), 0.0)
        # The contexts must be left in the task that entered them.
        self._serving = asyncio.create_task(self._serve(), name="serve")
        self._gateway, self._app = await self._started

    async def _serve(self) -> None:
        settings = self._settings
        try:
            async with (
                running_administration(settings, self._observer, only=self._only) as (gateway, _),
                traces(settings) as tracing,
            ):
                app = create_app(settings, gateway, self._observer, self._lifecycle, tracing=tracing)
                app.openapi()
                for model in gateway.service.models:
                    await model.settled()
                tune_garbage_collector()
                self._started.set_result((gateway, app))
                await self._stopping.wait()
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def answer(self, call: HttpCall) -> HttpAnswer:
        """What the application answers."""
        return await answer_of(self._app, call)

    async def metrics(self) -> tuple[str, bytes]:
        """Its name, and its metrics in Prometheus's text format."""
        return serve.get_replica_context().replica_tag, self._observer.exposition()

    async def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that fails.

        Raises:
            RuntimeError: a model has not answered its canary for a minute, or everything has ended.
        """
        if self._serving.done():
            raise RuntimeError("the service has ended; the log says why")
        failed = [model.name for model in self._gateway.service.models if model.status is Status.FAILED]
        if not failed:
            self._ready_at = perf_counter()
        elif perf_counter() > self._ready_at + _UNREADY_S:
            raise RuntimeError(f"models do not answer: {', '.join(failed)}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Ray: the seconds of work that wait here, and the share of the time in which engines computed."""
        models = [model.name for model in self._gateway.service.models]
        before, computed_before = self._computed
        computed = self._observer.computed_s(models)
        self._computed = now, _ = perf_counter(), computed
        busy = min(1.0, (computed - computed_before) / max(1e-3, now - before))
        return {WAITING_S: self._observer.waiting_s(models), BUSY: busy}

    async def __del__(self) -> None:
        """Called by Ray once running requests have ended."""
        self._lifecycle.draining = True
        self._stopping.set()
        await asyncio.gather(self._serving, return_exceptions=True)
