"""The HTTP application over a service of fakes: everything between the socket and the engine is the real thing."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from rerankd.api.app import Reading, create_app
from rerankd.api.lifecycle import Lifecycle
from rerankd.concurrency.pacing import Pacing
from rerankd.config.api_keys import read_api_keys
from rerankd.config.settings import Settings
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.held_bytes import HeldBytes
from rerankd.gateway.keys import ApiKeys
from rerankd.jobs.running import running_jobs
from rerankd.scorers.ranking import sigmoid
from rerankd.telemetry.metrics import PrometheusObserver
from rerankd.telemetry.otel import Tracing
from tests.fakes import ArithmeticEngine, FakeService

OpenApi = Callable[..., AbstractAsyncContextManager["Api"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """A client of the application, and what lies behind it."""

    app: ASGIApp
    client: httpx.AsyncClient
    gateway: Gateway
    engine: ArithmeticEngine
    observer: PrometheusObserver
    lifecycle: Lifecycle

    async def post(self, path: str, body: object = None, **request: Any) -> httpx.Response:
        """Post a JSON body, or `content=` as it is."""
        if "content" not in request:
            request["json"] = body
        return await self.client.post(path, **request)

    def requests_counted(self, *, dialect: str, status: int, model: str = "fake") -> float:
        labels = {"dialect": dialect, "status": str(status), "model": model}
        return self.observer.registry.get_sample_value("rerank_requests_total", labels) or 0.0


@asynccontextmanager
async def _open_api(
    fake: FakeService | None = None, *, tracing: Tracing | None = None, **settings: Any
) -> AsyncIterator[Api]:
    fake = fake or FakeService(activation=sigmoid)
    fake.observer = PrometheusObserver()
    lifecycle = Lifecycle()
    async with fake.running() as service:
        read = Settings(**settings)
        keys = ApiKeys(read_api_keys(read.api_keys, read.api_keys_file))
        held = HeldBytes(read.max_held_bytes)
        gateway = Gateway(service, keys=keys, held=held, pacing=Pacing(cores=2), observer=fake.observer)
        reading = Reading.within(read, gateway)
        lines = reading.line_answers(read, gateway)
        async with (
            running_jobs(read, gateway, lines, fake.observer, endpoints=lines.endpoints) as jobs,
        ):
            app = create_app(read, gateway, fake.observer, lifecycle, tracing=tracing, reading=reading, jobs=jobs)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                yield Api(
                    app=app,
                    client=client,
                    gateway=gateway,
                    engine=fake.engine,
                    observer=fake.observer,
                    lifecycle=lifecycle,
                )


@pytest.fixture
def open_api() -> OpenApi:
    """Opens an application over a `FakeService` of the test's own, with settings of its own."""
    return _open_api


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with _open_api(FakeService(activation=sigmoid, max_documents=50, max_query_chars=1000)) as api:
        yield api


def address_of(path: str) -> str:
    """A path with something in place of its parameters."""
    return re.sub(r"{\w+:path}", "fake", path)


def is_our_error(answer: httpx.Response, status: int, code: str) -> bool:
    """Whether an answer is the one error body that every client can read, or Google's with the same message."""
    body = answer.json()
    if isinstance(body["error"], dict) and body["error"].keys() == {"code", "message", "status"}:
        body["error"] = body["error"]["message"]
    return (
        answer.status_code == status
        and answer.headers["content-type"] == "application/json"
        and set(body) == {"message", "detail", "error", "error_type"}
        and all(isinstance(value, str) and value for value in body.values())
        and body["message"] == body["detail"] == body["error"]
        and body["error_type"] == code
        and bool(answer.headers["x-request-id"])
    )
