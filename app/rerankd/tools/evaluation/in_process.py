"""A model of the registry, scored in this process through the service's own pipeline, without a cache."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from time import perf_counter
from typing import Any

from pydantic import SecretStr

from rerankd import __version__
from rerankd.config.named_models import served_registry
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError, DeadlineExceeded, InvalidRequest, ModelNotReady, Overloaded
from rerankd.scorers.calibration import Calibration
from rerankd.serving.assembly import running_service
from rerankd.serving.choosing import choose
from rerankd.serving.model_files import calibration_file, model_content, model_folder
from rerankd.telemetry.observer import Silent
from rerankd.tools.evaluation.targets import REFUSED, Answer, Ask

_NAMES_ONLY = {"name", "aliases", "path", "revision"}


class InProcess:
    def __init__(self, settings: Settings, model: str | None, *, deadline_s: float = inf) -> None:
        """None is the registry's default model. Before `deadline_s` it reads as many candidates as fit.

        Raises:
            ConfigError: the registry has no such model.
        """
        self._settings = settings
        registry = served_registry(settings).only([model])
        # With the members of a cascade.
        self._specs = registry.model
        self._model = next(spec.name for spec in self._specs if spec == registry.find(None))
        self._deadline_s = deadline_s
        self.name = self._model if deadline_s == inf else f"{self._model} in {1000 * deadline_s:g} ms"

    async def identity(self) -> Mapping[str, Any]:
        contents = [await asyncio.to_thread(self._content, spec) for spec in self._specs]
        settings = [spec.model_dump(mode="json", exclude=_NAMES_ONLY, exclude_defaults=True) for spec in self._specs]
        deadline = {} if self._deadline_s == inf else {"deadline_s": self._deadline_s}
        return {"version": __version__, "content": contents, "settings": settings, **deadline}

    def _content(self, spec: ModelSpec) -> str:
        """Of a model's files, its calibration among them; a cascade has none of its own."""
        if spec.stages:
            return ""
        spec = choose(spec, self._settings)
        folder = model_folder(spec, self._settings)
        calibration = calibration_file(spec, folder, self._settings)
        calibrated = Calibration.read(calibration).fingerprint if calibration else ""
        return model_content(spec, folder) + calibrated

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        """Raises `ConfigError` if the model cannot be loaded."""
        unlimited = self._settings.model_copy(
            update={
                "cache_url": SecretStr("none://"),
                "max_documents": 2**31,
                "max_waiting_tokens": 2**62,
                "request_timeout_s": 1e9,
            }
        )
        async with running_service(unlimited, Silent(), only=[self._model]) as service:
            model = service.model_named(self._model)
            try:
                await model.settled()
            except ModelNotReady:
                raise ConfigError(f"model {self._model!r} cannot be loaded: {model.reason}") from None

            speed_is_known = self._deadline_s == inf

            async def ask(request: RerankRequest) -> Answer:
                nonlocal speed_is_known
                if not speed_is_known:
                    # As of a server that has served: without it the first request would be read whole, and be late.
                    await service.rerank(request)
                    speed_is_known = True
                started = perf_counter()
                try:
                    result = await service.rerank(self._in_time(request, started))
                except (DeadlineExceeded, Overloaded):
                    if self._deadline_s == inf:
                        raise
                    return Answer(range(len(request.documents)), (), perf_counter() - started)
                except InvalidRequest as error:
                    if error.code == InvalidRequest.code:
                        return REFUSED
                    raise
                seconds = perf_counter() - started
                return Answer(
                    [ranked.index for ranked in result.results],
                    [ranked.relevance_score for ranked in result.results],
                    seconds,
                    [ranked.value for ranked in result.results],
                )

            yield ask

    def _in_time(self, request: RerankRequest, started: float) -> RerankRequest:
        if self._deadline_s == inf:
            return request
        terms = replace(request.options.terms, deadline=started + self._deadline_s, partial=True)
        return replace(request, options=replace(request.options, terms=terms, budgeted=True))
