"""Endpoints besides reranking: health, readiness, metrics, the served models."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from fastapi import APIRouter
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from rerankd import __version__
from rerankd.api.answers import ERROR_SCHEMA, json_answer
from rerankd.api.auth import key_required, security_of
from rerankd.api.fixed_answers import FixedAnswer
from rerankd.api.lifecycle import Lifecycle
from rerankd.config.api_keys import Scope
from rerankd.gateway.gateway import Gateway
from rerankd.serving.model import ServedModel
from rerankd.telemetry.merged_metrics import Collecting

Json = dict[str, Any]
# The metrics of this process, or of all processes of this service.
CollectMetrics = Callable[[], Awaitable[Collecting]]

_ERRORS: Final[Json] = {
    "description": "An error; the message says what to change.",
    "content": {"application/json": {"schema": ERROR_SCHEMA}},
}


HEALTH: Final = FixedAnswer(
    lambda: orjson.dumps({"status": "ok", "version": __version__}), media_type="application/json"
)


class Health(BaseModel):
    status: Literal["ok"]
    version: str


class ModelState(BaseModel):
    status: str
    reason: str | None = None
    warning: str | None = None


class Readiness(BaseModel):
    status: Literal["ready", "not ready", "draining"]
    models: dict[str, ModelState]


class ModelDescription(BaseModel):
    """Further fields depend on the model's scorer and engine."""

    id: str
    object: Literal["model"]
    owned_by: str
    created: int
    model_type: Literal["rerank"]
    aliases: list[str]
    status: str


# The details of a model that every holder of a key may see. Options are not among them: they may hold paths and URLs.
_SHOWN: Final = ("scorer", "engine", "stages", "revision", "max_length", "scores", "batch_independent", "certified")


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelDescription]


class Information(BaseModel):
    model_id: str
    model_type: dict[str, Any]
    max_client_batch_size: int
    max_input_length: int | None
    version: str
    models: list[ModelDescription]


class Authentication(BaseModel):
    auth: bool


@dataclass(frozen=True, slots=True)
class _Operation:
    """An endpoint and, for the OpenAPI document, its answers by status."""

    endpoint: Callable[..., Any]
    answers: dict[int | str, Json]


def _answers(model: type[BaseModel], *statuses: int) -> dict[int | str, Json]:
    return {status: {"model": model, "description": "As the schema says."} for status in (200, *statuses)}


_EXPOSITION: Final[dict[int | str, Json]] = {
    200: {
        "description": "Prometheus's text format, or OpenMetrics if the Accept header asks for it.",
        "content": {media: {"schema": {"type": "string"}} for media in ("text/plain", "application/openmetrics-text")},
    }
}


class OperationsEndpoints:
    def __init__(
        self,
        *,
        gateway: Gateway,
        lifecycle: Lifecycle,
        metrics: CollectMetrics,
        document: FixedAnswer,
    ) -> None:
        self._service = gateway.service
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._document = document
        self._expositions: dict[str, asyncio.Task[bytes]] = {}
        self._keys = gateway.keys

    async def health(self, request: Request) -> Response:
        """200 while the process can answer at all. Restart it when this fails."""
        return HEALTH.answer(request.headers)

    async def ready(self) -> Response:
        """200 when every model passed its latest canary inference; otherwise 503 with the reason for each model. It
        answers at once under any load, because canaries run in the background.
        """
        ready = all(model.status.answers for model in self._service.models) and not self._lifecycle.draining
        body: Json = {
            "status": "draining" if self._lifecycle.draining else "ready" if ready else "not ready",
            "models": {
                model.name: {
                    "status": model.status,
                    **({"reason": model.reason} if model.reason else {}),
                    **({"warning": model.warning} if model.warning else {}),
                }
                for model in self._service.models
            },
        }
        headers = {} if ready else {"Retry-After": "5"}
        return json_answer(body, status=200 if ready else 503, headers=headers)

    async def metrics(self, request: Request) -> Response:
        """Requests of the same turn of the event loop share one exposition."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        if content_type not in self._expositions:
            self._expositions[content_type] = asyncio.create_task(self._exposition(encode, content_type))
        return Response(await asyncio.shield(self._expositions[content_type]), media_type=content_type)

    async def _exposition(self, encode: Callable[[Any], bytes], content_type: str) -> bytes:
        await asyncio.sleep(0)
        del self._expositions[content_type]
        return encode(await self._metrics())

    async def models(self) -> Response:
        """The served models, as OpenAI's clients and NVIDIA's expect the list."""
        return json_answer({"object": "list", "data": [_describe(model) for model in self._service.models]})

    async def model(self, name: str) -> Response:
        return json_answer(_describe(self._service.model_named(name)))

    async def description(self, request: Request) -> Response:
        """The OpenAPI document, for holders of a key."""
        return self._document.answer(request.headers)

    async def authentication(self) -> Response:
        """Whether keys are needed: Xinference's client asks before it sends its own."""
        return json_answer({"auth": not self._keys.open})

    async def info(self) -> Response:
        """The default model and the limits, as clients of text-embeddings-inference expect them."""
        default = self._service.model_named(None)
        return json_answer(
            {
                "model_id": default.name,
                "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
                "max_client_batch_size": self._service.limits.max_documents,
                "max_input_length": default.details.get("max_length"),
                "version": __version__,
                "models": [_describe(model) for model in self._service.models],
            }
        )


def operations_routes(endpoints: OperationsEndpoints, *, gateway: Gateway, private: bool) -> APIRouter:
    """Health and readiness need no key, nor do metrics unless `private`. Whatever names models needs one."""
    open_routes = {
        "/health": _Operation(endpoints.health, _answers(Health)),
        "/ready": _Operation(endpoints.ready, _answers(Readiness, 503)),
        "/v1/cluster/auth": _Operation(endpoints.authentication, _answers(Authentication)),
        # Weaviate asks its module's server both when it starts.
        "/weaviate/.well-known/ready": _Operation(endpoints.ready, _answers(Readiness, 503)),
        "/weaviate/meta": _Operation(endpoints.health, _answers(Health)),
    }
    keyed_routes = {
        "/v1/models": _Operation(endpoints.models, _answers(ModelList)),
        "/models": _Operation(endpoints.models, _answers(ModelList)),
        "/v1/models/{name:path}": _Operation(endpoints.model, _answers(ModelDescription)),
        "/info": _Operation(endpoints.info, _answers(Information)),
    }
    metrics = {"/metrics": _Operation(endpoints.metrics, _EXPOSITION)}
    if private:
        keyed_routes["/openapi.json"] = _Operation(endpoints.description, {})
    router = APIRouter(tags=["operations"], default_response_class=Response)
    _add(router, open_routes if private else open_routes | metrics, extra={})
    guards: dict[Scope, dict[str, _Operation]] = {"rerank": keyed_routes, "metrics": metrics if private else {}}
    for scope, routes in guards.items():
        guarded = APIRouter(dependencies=[key_required(gateway, scope)])
        _add(guarded, routes, extra=security_of(gateway.keys))
        router.include_router(guarded)
    return router


def _add(router: APIRouter, routes: dict[str, _Operation], *, extra: Json) -> None:
    """HEAD is answered like GET; the server leaves the body out."""
    for path, operation in routes.items():
        answers = {**operation.answers, "default": _ERRORS}
        router.add_api_route(path, operation.endpoint, methods=["GET"], responses=answers, openapi_extra=extra)
        router.add_api_route(path, operation.endpoint, methods=["HEAD"], include_in_schema=False)


def _describe(model: ServedModel) -> Json:
    return {
        "id": model.name,
        "object": "model",
        "owned_by": "rerankd",
        "created": model.created,
        "model_type": "rerank",
        "aliases": list(model.aliases),
        "status": model.status,
        **{name: model.details[name] for name in _SHOWN if name in model.details},
    }
