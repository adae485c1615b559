"""Middleware that opens a trace for each request, part of the client's where its `traceparent` names one."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rerankd.api.access import PROBES, access_of
from rerankd.gateway.gateway import CallFacts
from rerankd.telemetry.otel import Tracing
from rerankd.telemetry.spans import Span, opened

_SERVER_ERROR: Final = 500
_LONGEST_PATH: Final = 200


class TracedRequests:
    """Inside `RequestContext`, whose facts of a request become attributes. Probes are not traced."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"][:_LONGEST_PATH]
        known = {"http.request.method": method, "url.path": path, "url.scheme": scope["scheme"]}
        span = self._tracing.request(f"{method} {path}", known, Headers(scope=scope))
        if span is None:
            await self._app(scope, receive, send)
            return
        with opened(span):
            try:
                await self._app(scope, receive, send)
            finally:
                _conclude(span, access_of(scope).call, access_of(scope).status)


def _conclude(span: Span, call: CallFacts, status: int) -> None:
    facts: dict[str, str | int] = {"http.response.status_code": status}
    if status >= _SERVER_ERROR:
        facts["error.type"] = str(status)
    if call.dialect:
        facts |= {"gen_ai.operation.name": "rerank", "gen_ai.provider.name": "rerankd", "rerankd.dialect": call.dialect}
    if call.model:
        facts |= {"gen_ai.request.model": call.model, "gen_ai.usage.input_tokens": call.tokens}
    if call.documents is not None:
        facts["rerankd.documents"] = call.documents
    span.note(facts)
