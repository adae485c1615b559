"""The endpoints of operators: which models run, and commands that change them. They exist only where admin keys do."""

from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from rerankd.api.access import access_of
from rerankd.api.answers import ERROR_SCHEMA, json_answer
from rerankd.api.auth import admin_key_required, security_of
from rerankd.gateway.administration import Administration
from rerankd.gateway.keys import ApiKeys
from rerankd.serving.hosting import HostedModel

_ERRORS: Final[dict[str, Any]] = {
    "description": "An error. Nothing was changed; the message says why.",
    "content": {"application/json": {"schema": ERROR_SCHEMA}},
}


class Versions(BaseModel):
    loading: int
    serving: int
    draining: int


class AdministeredModel(BaseModel):
    """`requests` use it now, and `idle_s` ago the last one ended; both are null while it is not loaded."""

    name: str
    aliases: list[str]
    default: bool
    path: str
    status: str
    reason: str
    warning: str
    details: dict[str, Any]
    loaded_at: int | None
    requests: int | None
    idle_s: float | None
    versions: Versions


class AdministeredModels(BaseModel):
    models: list[AdministeredModel]


class Reloaded(BaseModel):
    """Names of models; `changed` load nothing again, but have other aliases or another fallback. `default` answers
    requests that name none.
    """

    added: list[str]
    replaced: list[str]
    changed: list[str]
    removed: list[str]
    default: str


class ReloadedKeys(BaseModel):
    """Names of keys; `changed` have another value, other limits or scopes."""

    added: list[str]
    removed: list[str]
    changed: list[str]


class AdminEndpoints:
    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def models(self) -> Response:
        """Every served model, with its versions that load, serve or still finish requests."""
        return json_answer({"models": [self._described(hosted) for hosted in self._administration.models()]})

    async def reload(self, request: Request) -> Response:
        """Read the registry again. What is new or has changed loads beside what serves; all of it takes over together,
        or nothing changes (409). The answer comes when the new models serve.
        """
        changes = await self._administration.reload_models(by=_operator(request))
        answer = Reloaded(
            added=[*changes.added],
            replaced=[*changes.replaced],
            changed=[*changes.changed],
            removed=[*changes.removed],
            default=changes.default,
        )
        return json_answer(answer.model_dump())

    async def reload_keys(self, request: Request) -> Response:
        """Read the files of API keys and admin keys again, or change nothing (409). A variable's keys stay."""
        changes = await self._administration.reload_keys(by=_operator(request))
        answer = ReloadedKeys(added=[*changes.added], removed=[*changes.removed], changed=[*changes.changed])
        return json_answer(answer.model_dump())

    async def load(self, name: str, request: Request) -> Response:
        """Load a model from its files, beside itself if it serves. The answer comes when it serves."""
        return json_answer(self._described(await self._administration.load(name, by=_operator(request))))

    async def unload(self, name: str, request: Request) -> Response:
        """Release a model's memory when its requests have ended. The next request loads it again."""
        return json_answer(self._described(await self._administration.unload(name, by=_operator(request))))

    def _described(self, hosted: HostedModel) -> dict[str, Any]:
        model, usage = hosted.model, hosted.model.usage
        return AdministeredModel(
            name=model.name,
            aliases=[*model.aliases],
            default=self._administration.default is model,
            path=hosted.path,
            status=model.status,
            reason=model.reason,
            warning=model.warning,
            details=dict(model.details),
            loaded_at=model.created if usage else None,
            requests=usage.requests if usage else None,
            idle_s=round(usage.idle_s, 3) if usage else None,
            versions=Versions(**{state: hosted.versions.get(state, 0) for state in Versions.model_fields}),
        ).model_dump()


def admin_routes(administration: Administration, keys: ApiKeys) -> APIRouter:
    """A router with `/admin`, for holders of these keys."""
    endpoints = AdminEndpoints(administration)
    router = APIRouter(
        prefix="/admin",
        tags=["admin"],
        dependencies=[admin_key_required(keys)],
        default_response_class=Response,
        responses={"default": _ERRORS},
    )
    extra = security_of(keys)
    listed: dict[int | str, dict[str, Any]] = {200: {"model": AdministeredModels}}
    reloaded: dict[int | str, dict[str, Any]] = {200: {"model": Reloaded}}
    changed: dict[int | str, dict[str, Any]] = {200: {"model": AdministeredModel}}
    router.add_api_route("/models", endpoints.models, methods=["GET"], responses=listed, openapi_extra=extra)
    router.add_api_route("/models", endpoints.models, methods=["HEAD"], include_in_schema=False)
    router.add_api_route("/reload", endpoints.reload, methods=["POST"], responses=reloaded, openapi_extra=extra)
    keys_read: dict[int | str, dict[str, Any]] = {200: {"model": ReloadedKeys}}
    router.add_api_route(
        "/keys/reload", endpoints.reload_keys, methods=["POST"], responses=keys_read, openapi_extra=extra
    )
    for command in (endpoints.load, endpoints.unload):
        path = f"/models/{{name:path}}/{command.__name__}"
        router.add_api_route(path, command, methods=["POST"], responses=changed, openapi_extra=extra)
    return router


def _operator(request: Request) -> str:
    return access_of(request.scope).call.key
