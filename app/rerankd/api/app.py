"""The HTTP application: routes, pages and middleware in front of a gateway."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rerankd import __version__
from rerankd.api.admin import admin_routes
from rerankd.api.answers import error_answer
from rerankd.api.auth import SECURITY_SCHEMES
from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import RequestLimits
from rerankd.api.docs_page import docs_files
from rerankd.api.fixed_answers import FixedAnswer, FixedAnswers
from rerankd.api.job_lines import LineAnswers
from rerankd.api.jobs import FILES, job_routes
from rerankd.api.lifecycle import Lifecycle
from rerankd.api.middleware import BodyBounds, BodyLimit, RequestContext
from rerankd.api.ops import HEALTH, CollectMetrics, OperationsEndpoints, operations_routes
from rerankd.api.parsing.bodies import BodyLimits, BodyReader
from rerankd.api.playground import playground_files
from rerankd.api.rerank import RerankPaths, rerank_routes
from rerankd.api.transport.forwarded import ForwardedClient
from rerankd.api.wrong_paths import WithoutPrefix, WrongPaths
from rerankd.config.settings import Settings
from rerankd.errors import RerankError
from rerankd.gateway.administration import Administration
from rerankd.gateway.failures import CANCELLED, CallerGone
from rerankd.gateway.gateway import Gateway
from rerankd.jobs.jobs import Jobs
from rerankd.telemetry.merged_metrics import Collecting
from rerankd.telemetry.metrics import PrometheusObserver

if TYPE_CHECKING:
    from rerankd.telemetry.otel import Tracing

# What a form has beside its file.
_FORM_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Reading:
    """How requests are read, from HTTP and from the files of jobs."""

    bodies: BodyReader
    limits: RequestLimits

    @classmethod
    def within(cls, settings: Settings, gateway: Gateway) -> "Reading":
        bodies = BodyLimits(
            max_values=settings.max_body_values,
            max_fields=settings.max_body_fields,
            max_text_bytes=settings.max_text_bytes,
        )
        limits = RequestLimits(
            documents=gateway.service.limits.max_documents,
            queries=settings.max_queries,
            query_chars=settings.max_query_chars,
            rank_fields=settings.max_rank_fields,
            fields=settings.max_body_fields,
            images=gateway.service.limits.images,
        )
        return cls(BodyReader(bodies), limits)

    def line_answers(self, settings: Settings, gateway: Gateway) -> LineAnswers:
        """What answers the lines of jobs."""
        return LineAnswers(DIALECTS, gateway=gateway, bodies=self.bodies, limits=self.limits, strict=settings.strict)


def create_app(  # noqa: PLR0913 - what it puts HTTP before
    settings: Settings,
    gateway: Gateway,
    observer: PrometheusObserver,
    lifecycle: Lifecycle,
    administration: Administration | None = None,
    tracing: "Tracing | None" = None,
    *,
    reading: "Reading | None" = None,
    jobs: Jobs | None = None,
    metrics: CollectMetrics | None = None,
) -> FastAPI:
    """The HTTP application in front of a running gateway. Without admin keys it has no `/admin`. `reading` is what it
    shares with whatever answers the lines of its `jobs`. `metrics` None: those of this process.
    """

    async def own_metrics() -> Collecting:
        return observer.registry

    app = FastAPI(
        title="rerankd",
        version=__version__,
        description="A query and candidate documents go in, the documents come back in order of relevance.",
        redirect_slashes=False,
        # FastAPI's own pages load their scripts from a CDN.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
    )
    document = FixedAnswer(lambda: orjson.dumps(app.openapi()), "application/json")
    reading = reading or Reading.within(settings, gateway)
    router, endpoints = rerank_routes(
        DIALECTS, gateway=gateway, bodies=reading.bodies, limits=reading.limits, strict=settings.strict
    )
    app.include_router(router)
    app.include_router(job_routes(jobs, reading.bodies, gateway=gateway))
    operations = OperationsEndpoints(
        gateway=gateway, lifecycle=lifecycle, metrics=metrics or own_metrics, document=document
    )
    app.include_router(operations_routes(operations, gateway=gateway, private=settings.private))
    administered = administration is not None and administration.admin_keys is not None
    if administration is not None and administration.admin_keys is not None:
        app.include_router(admin_routes(administration, administration.admin_keys))
    fixed = {"/health": HEALTH}
    if not settings.private:
        fixed |= {**playground_files(), **docs_files(), "/openapi.json": document}
    app.add_exception_handler(RerankError, _known_error)
    app.add_exception_handler(CallerGone, _gone)
    wrong_paths = WrongPaths(lambda: [*app.openapi()["paths"], *fixed], documented=not settings.private)
    app.add_exception_handler(HTTPException, wrong_paths)
    app.add_middleware(RerankPaths, endpoints=endpoints)
    _add_middleware(app, settings, gateway, lifecycle, fixed, tracing)
    observer.watch_held_bytes(lambda: gateway.held.total)
    if not gateway.keys.open or administered:
        _name_security_schemes(app)
    return app


def _add_middleware(
    app: FastAPI,
    settings: Settings,
    gateway: Gateway,
    lifecycle: Lifecycle,
    fixed: Mapping[str, FixedAnswer],
    tracing: "Tracing | None",
) -> None:
    """From the innermost to the outermost, which sees a request first."""
    bounds = BodyBounds(max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    uploads = replace(
        bounds, max_bytes=settings.jobs_max_file_bytes + _FORM_BYTES, way_out="send several smaller files"
    )
    app.add_middleware(BodyLimit, bounds=bounds, held=gateway.held, others={FILES: uploads})
    app.add_middleware(FixedAnswers, answers=fixed)
    if tracing is not None:
        from rerankd.api.tracing import TracedRequests  # noqa: PLC0415 - needs packages of the extra `otel`

        app.add_middleware(TracedRequests, tracing=tracing)
    app.add_middleware(RequestContext, lifecycle=lifecycle)
    if settings.trusted_proxies:
        app.add_middleware(ForwardedClient, trusted=settings.trusted_proxies)
    if settings.root_path:
        app.add_middleware(WithoutPrefix, prefix=settings.root_path)


def _name_security_schemes(app: FastAPI) -> None:
    undecorated = app.openapi

    def openapi() -> dict[str, Any]:
        document = undecorated()
        document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to add to the document


async def _known_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RerankError)  # noqa: S101 - Starlette calls this for nothing else
    return error_answer(error)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CANCELLED.status)
