"""What a traced request leaves: spans in the client's trace, links between passes and requests, exemplars, no texts."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from rerankd.cache.memory import MemoryCache
from rerankd.telemetry.otel import Tracing
from rerankd.telemetry.spans import current_span
from tests.api.conftest import OpenApi
from tests.fakes import ArithmeticEngine, FakeService

_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_PARENT = "00f067aa0ba902b7"
_SAMPLED = {"traceparent": f"00-{_TRACE}-{_PARENT}-01"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing(SimpleSpanProcessor(exporter))


def _named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def _body(*documents: str) -> dict[str, object]:
    return {"query": "a secret query", "documents": [*documents]}


async def test_a_request_continues_the_trace_of_its_client(
    open_api: OpenApi, exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    service = FakeService(cache=MemoryCache(max_entries=100))
    async with open_api(service, tracing=tracing) as api:
        assert (await api.post("/v2/rerank", _body("a secret", "another"), headers=_SAMPLED)).status_code == 200
    spans = exporter.get_finished_spans()
    (request,) = _named(spans, "POST /v2/rerank")
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == _PARENT
    assert {f"{span.context.trace_id:032x}" for span in spans} == {_TRACE}
    names = {"parse", "cache get", "tokenize", "queue", "inference", "pass", "cache put", "write"}
    assert {span.name for span in spans} == names | {"POST /v2/rerank"}
    assert all(request.start_time <= span.start_time <= span.end_time <= request.end_time for span in spans)  # type: ignore[operator]
    told = dict(request.attributes or {})
    assert told["gen_ai.operation.name"] == "rerank"
    assert told["gen_ai.request.model"] == "fake"
    assert told["http.response.status_code"] == 200
    assert told["rerankd.documents"] == 2
    assert isinstance(told["gen_ai.usage.input_tokens"], int)
    assert told["gen_ai.usage.input_tokens"] > 0
    assert "secret" not in "".join(span.to_json() for span in spans)
    assert current_span() is None


@pytest.mark.parametrize(
    "headers",
    [_SAMPLED | {"tracestate": "a secret,=,k=v;" * 30}, {"traceparent": "-" * 5000}, {"traceparent": "00-" + "z" * 52}],
)
async def test_bad_headers_do_no_harm_and_are_not_logged(
    open_api: OpenApi, tracing: Tracing, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_api(FakeService(), tracing=tracing) as api:
        assert (await api.post("/v2/rerank", _body("a"), headers=headers)).status_code == 200
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_a_pass_is_linked_to_every_request_in_it(
    open_api: OpenApi, exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    service = FakeService(engine=ArithmeticEngine(workers=1, pairs=8, seconds_per_pass=0.05))
    async with open_api(service, tracing=tracing) as api:
        first = asyncio.ensure_future(api.post("/v2/rerank", _body("first")))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, *(api.post("/v2/rerank", _body(text)) for text in ("second", "third")))
    spans = exporter.get_finished_spans()
    requests = {span.context.span_id for span in _named(spans, "POST /v2/rerank")}
    passes = _named(spans, "pass")
    linked = sorted(len(one.links) for one in passes)
    assert linked == [1, 2]
    assert {link.context.span_id for one in passes for link in one.links} == requests
    alone, joint = sorted(passes, key=lambda one: len(one.links))
    assert alone.parent is not None
    assert joint.parent is None, "it belongs to two traces alike, so it is one of its own"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [("/v2/rerank", {"query": "q"}, 400, StatusCode.UNSET), ("/nowhere", {}, 404, StatusCode.UNSET)],
)
async def test_a_clients_mistake_is_no_failed_span(
    open_api: OpenApi,
    exporter: InMemorySpanExporter,
    tracing: Tracing,
    path: str,
    body: object,
    status: int,
    code: StatusCode,
) -> None:
    async with open_api(tracing=tracing) as api:
        assert (await api.post(path, body)).status_code == status
    (request,) = _named(exporter.get_finished_spans(), f"POST {path}")
    assert (request.attributes or {})["http.response.status_code"] == status
    assert request.status.status_code is code


async def test_a_failed_pass_is_told_by_kind_and_not_by_message(
    open_api: OpenApi, exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    async with open_api(FakeService(), tracing=tracing) as api:
        assert (await api.post("/v2/rerank", _body("poison"))).status_code == 500
    spans = exporter.get_finished_spans()
    assert {one.status.status_code for one in _named(spans, "pass")} == {StatusCode.ERROR}
    assert (_named(spans, "POST /v2/rerank")[0].attributes or {})["error.type"] == "500"
    assert not any(span.events for span in spans)


async def test_probes_and_requests_that_are_not_sampled_leave_nothing(
    open_api: OpenApi, exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    async with open_api(tracing=tracing) as api:
        for path in ("/health", "/ready", "/metrics"):
            await api.client.get(path)
        not_sampled = {"traceparent": f"00-{_TRACE}-{_PARENT}-00"}
        assert (await api.post("/v2/rerank", _body("a"), headers=not_sampled)).status_code == 200
    assert exporter.get_finished_spans() == ()


async def test_histograms_name_a_trace_in_each_bucket(open_api: OpenApi, tracing: Tracing) -> None:
    async with open_api(tracing=tracing) as api:
        await api.post("/v2/rerank", _body("a"), headers=_SAMPLED)
        wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
        metrics = (await api.client.get("/metrics", headers=wanted)).text
        plain = (await api.client.get("/metrics")).text
    for name in ("rerank_request_duration_seconds_bucket", "rerank_stage_duration_seconds_bucket"):
        assert any(line.startswith(name) and f'trace_id="{_TRACE}"' in line for line in metrics.splitlines())
    assert _TRACE not in plain


def test_without_traces_the_packages_are_not_even_imported() -> None:

    code = (
        "import sys, rerankd.api.server; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
