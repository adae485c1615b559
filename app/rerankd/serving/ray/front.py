"""The deployment that takes HTTP requests: it finds the replicas of a request's model, and asks again when one dies."""

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import orjson
from ray.exceptions import ActorDiedError, RayError, RayTaskError, TaskCancelledError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rerankd.api.access import access_of, start_access
from rerankd.api.answers import error_answer
from rerankd.api.auth import key_in
from rerankd.api.jobs import BATCHES, FILES
from rerankd.api.middleware import BodyBounds, BodyLimit
from rerankd.api.ops import HEALTH
from rerankd.api.parsing.bodies import BodyLimits, BodyReader
from rerankd.config.api_keys import read_api_keys
from rerankd.config.named_models import served_registry
from rerankd.config.registry import Registry
from rerankd.config.settings import Settings, read_settings
from rerankd.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotConfigured,
    NotFound,
    RequestTooLarge,
    RerankError,
    Unavailable,
)
from rerankd.gateway.held_bytes import HeldBytes
from rerankd.gateway.keys import ApiKeys
from rerankd.serving.ray.exposition import merged
from rerankd.serving.ray.messages import HttpAnswer, HttpCall
from rerankd.telemetry import logs

logger = logging.getLogger(__name__)

# A request that was there when this many replicas died may be what kills them.
_DEATHS: Final = 5
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0
# How long a replica may take to tell its metrics.
_METRICS_S: Final = 5.0
# What an answer may take behind a request's time limit.
_ANSWER_S: Final = 5.0
# The model of NVIDIA's path; everywhere else it is a field of the body.
_IN_PATH: Final = re.compile(r"/v1/retrieval/(.+)/reranking")
_ONE_MODEL: Final = re.compile(r"/v1/models/(.+)")
_NO_ADMIN: Final = "on Ray, replicas are changed by deploying again: edit the file and call `serve deploy`"
_NO_JOBS: Final = "on Ray there are no jobs: rank files with `rerankd rank --ray`, or send jobs to a `rerankd serve`"


class Front:
    """`handles` are the deployments in the order of the options, by name, each with the models that it serves."""

    def __init__(
        self,
        settings: dict[str, Any],
        handles: Mapping[str, DeploymentHandle[Any]],
        models: Mapping[str, Sequence[str]],
    ) -> None:
        self._settings = read_settings(**settings)
        logs.configure(self._settings.log_level, logs.LogFormat(self._settings.log_format))
        self._registry = served_registry(self._settings)
        self._handles = handles
        self._owner_of = owners(self._registry, models)
        self._keys = ApiKeys(read_api_keys(self._settings.api_keys, self._settings.api_keys_file))
        self._bodies = BodyReader(_limits(self._settings))
        bounds = BodyBounds(max_bytes=self._settings.max_body_bytes, timeout_s=self._settings.body_timeout_s)
        self._app = BodyLimit(self._forward, bounds=bounds, held=HeldBytes(self._settings.max_held_bytes))

    async def __call__(self, request: Request) -> Response:
        """Answer a request of Ray's HTTP proxy."""
        answer = HttpAnswer()
        start_access(request.scope)
        await self._app(request.scope, request.receive, answer.take)
        response = Response(answer.body, status_code=answer.status)
        # Ray's proxy adds the id itself, the one that it told us.
        response.raw_headers = [header for header in answer.headers if header[0].lower() != b"x-request-id"]
        return response

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Within the bounds of bodies."""
        try:
            answer = await self._answer(Request(scope, receive))
        except RerankError as error:
            await error_answer(error)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, request: Request) -> HttpAnswer:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path == "/health":
            return _as_answer(HEALTH.answer(request.headers))
        call = HttpCall.of(request.scope)
        if path in ("/ready", "/v1/models"):
            return await self._of_all(call, path)
        if path == "/metrics":
            return await self._metrics(call)
        if path.startswith("/admin"):
            raise NotFound(_NO_ADMIN)
        if path.startswith((FILES, BATCHES)):
            raise NotConfigured(_NO_JOBS)
        if request.method != "POST":
            named = _ONE_MODEL.fullmatch(path)
            return await self._ask(self._owner(named[1] if named else None), call)
        # Each key has its share of the bytes that are held here, before anything is read.
        access_of(request.scope).call.key = self._keys.identify(key_in(request.headers)).name
        return await self._ask(*await self._read(request, path, call))

    async def _read(self, request: Request, path: str, call: HttpCall) -> tuple[DeploymentHandle[Any], HttpCall]:
        """The deployment that has the request's model, and the request with its body."""
        body = await request.body()
        replayed = Request(request.scope, _once(body))
        try:
            fields = (await self._bodies.read_object(replayed, caller=access_of(request.scope).call.key)).fields
        except (InvalidRequest, RequestTooLarge):
            # The replica says so in the words of the path's dialect.
            return self._owner(None), call.with_body(body, key=b"")
        in_path = _IN_PATH.fullmatch(path)
        model = in_path[1] if in_path else fields.get("model")
        return self._owner(model), call.with_body(body, key=key_of(str(model), query_in(fields)))

    def _owner(self, model: object) -> DeploymentHandle[Any]:
        """The deployment that has a model; of an unknown one, and of None, that which has the default."""
        spec = self._registry.find(model) if isinstance(model, str) else None
        return self._handles[self._owner_of[(spec or self._registry.named(None)).name]]

    async def _ask(self, handle: DeploymentHandle[Any], call: HttpCall) -> HttpAnswer:
        """Ask a replica, and another one when it dies or its node does.

        Raises:
            Unavailable: several have died in a row.
            DeadlineExceeded: there was no answer in time.
        """
        try:
            async with asyncio.timeout(self._settings.request_timeout_s + _ANSWER_S):
                return await self._ask_until_answered(handle, call)
        except TimeoutError:
            raise DeadlineExceeded("no replica answered in time; send fewer documents") from None

    async def _ask_until_answered(self, handle: DeploymentHandle[Any], call: HttpCall) -> HttpAnswer:
        deaths = attempts = 0
        while True:
            try:
                answer: HttpAnswer = await handle.answer.remote(call)
            except RayError as error:
                if isinstance(error, RayTaskError | TaskCancelledError):
                    raise
                deaths += isinstance(error, ActorDiedError)
                attempts += 1
                logger.warning("a replica was lost and another one is asked: %s", type(error).__name__)
            else:
                return answer
            if deaths == _DEATHS:
                raise Unavailable("replicas die one after another; the cluster's log says why", retry_after_s=5.0)
            await asyncio.sleep(min(_LONGEST_PAUSE_S, attempts * _PAUSE_S))

    async def _of_all(self, call: HttpCall, path: str) -> HttpAnswer:
        """The answers of all deployments, as one."""
        answers = await asyncio.gather(*(self._ask(handle, call) for handle in self._handles.values()))
        worst = max(answers, key=lambda answer: answer.status)
        bodies = [orjson.loads(answer.body) for answer in answers]
        name = "models" if path == "/ready" else "data"
        if len(answers) == 1 or not all(name in body for body in bodies):
            return worst
        joined = orjson.loads(worst.body)
        if path == "/ready":
            joined[name] = {model: state for body in bodies for model, state in body[name].items()}
        else:
            joined[name] = list({model["id"]: model for body in bodies for model in body[name]}.values())
        return HttpAnswer(worst.status, _without_length(worst.headers), orjson.dumps(joined))

    async def _metrics(self, call: HttpCall) -> HttpAnswer:
        """Of all replicas, each with its name."""
        allowed = await self._ask(self._owner(None), call)
        if allowed.status != 200:
            return allowed
        try:
            told = await asyncio.gather(
                *(handle.broadcast("metrics").results_async(timeout_s=_METRICS_S) for handle in self._handles.values())
            )
        except (RayError, TimeoutError):
            raise Unavailable("a replica has died or does not tell its metrics", retry_after_s=5.0) from None
        expositions = {name: text for texts in told for name, text in texts}
        return HttpAnswer(200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], merged(expositions))


def owners(registry: Registry, models: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The deployment of each model: the first that serves it. A model of none belongs to the first deployment, which
    says that it does not serve it.

    Raises:
        ConfigError: a deployment names an unknown model.
    """
    owner_of: dict[str, str] = {}
    for name, served in models.items():
        for spec in (registry.only(served) if served else registry).model:
            owner_of.setdefault(spec.name, name)
    first = next(iter(models))
    return {spec.name: owner_of.get(spec.name, first) for spec in registry.model}


def query_in(fields: Mapping[str, Any]) -> object:
    """The query of a body: a field, an object with a text (NVIDIA), or within `input` (DashScope)."""
    inner = fields.get("input")
    query = fields.get("query", inner.get("query") if isinstance(inner, dict) else None)
    return query.get("text") if isinstance(query, dict) else query


def key_of(model: str, query: object) -> bytes:
    """What calls have in common that are best answered by the same replica; empty without a query."""
    text = query if isinstance(query, str) else ""
    return blake2b(f"{model}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest() if text else b""


def _limits(settings: Settings) -> BodyLimits:
    return BodyLimits(
        max_values=settings.max_body_values,
        max_fields=settings.max_body_fields,
        max_text_bytes=settings.max_text_bytes,
    )


def _once(body: bytes) -> Receive:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _as_answer(response: Response) -> HttpAnswer:
    return HttpAnswer(response.status_code, response.raw_headers, bytes(response.body))


def _without_length(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() != b"content-length"]
