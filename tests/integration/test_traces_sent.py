"""Traces over OTLP: two real servers, one of which asks the other, and a receiver that reads what they send."""

import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready

pytestmark = pytest.mark.timeout(240)


class _Collector:
    """A receiver of OTLP over HTTP: the spans of each service by name."""

    def __init__(self, port: int, spans: Mapping[str, list[Span]]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans = spans


@pytest.fixture
def collector() -> Iterator[_Collector]:
    spans: dict[str, list[Span]] = {"front": [], "back": []}

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for group in request.resource_spans:
                name = next(one.value.string_value for one in group.resource.attributes if one.key == "service.name")
                spans[name] += [span for scope in group.scope_spans for span in scope.spans]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield _Collector(server.server_port, spans)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_cascade_over_two_servers_is_one_trace(tmp_path: Path, tiny_model: Path, collector: _Collector) -> None:
    settings = {"RERANKD_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "RERANKD_CACHE_URL": "none://"}
    for name in ("front", "back"):
        (tmp_path / name).mkdir()
    registry = write_registry(tmp_path / "back", [{"name": "large", "path": tiny_model}])
    with rerankd_server(tmp_path / "back", registry, **settings, OTEL_SERVICE_NAME="back") as back:
        wait_until_ready(back)
        models: list[dict[str, Any]] = [
            {"name": "small", "path": tiny_model},
            {
                "name": "large",
                "engine": "remote",
                "options": {"protocol": "rerankd"},
                "engine_options": {"url": back.url, "model": "large"},
            },
            {"name": "both", "stages": ["small", "large:2"]},
        ]
        registry = write_registry(tmp_path / "front", models, default="both")
        with rerankd_server(tmp_path / "front", registry, **settings, OTEL_SERVICE_NAME="front") as front:
            wait_until_ready(front)
            body = {"query": "bees", "documents": ["honey", "the sea", "a hive"]}
            trace = "4bf92f3577b34da6a3ce929d0e0e4736"
            headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
            assert httpx.post(f"{front.url}/v2/rerank", json=body, headers=headers, timeout=30).status_code == 200
            front.process.terminate()
            assert front.process.wait(timeout=30) == 0, "what is left is sent before the end"
        back.process.terminate()
        assert back.process.wait(timeout=30) == 0
    spans = {name: [one for one in found if one.trace_id.hex() == trace] for name, found in collector.spans.items()}
    names = {name: [one.name for one in found] for name, found in spans.items()}
    assert {"POST /v2/rerank", "member small", "member large", "tokenize", "pass"} <= {*names["front"]}
    (asked,) = [one for one in spans["front"] if one.kind == Span.SPAN_KIND_CLIENT]
    (answered,) = [one for one in spans["back"] if one.kind == Span.SPAN_KIND_SERVER]
    assert answered.parent_span_id == asked.span_id
    above = {one.span_id: one for one in spans["front"]}
    path = [asked]
    while path[-1].parent_span_id in above:
        path.append(above[path[-1].parent_span_id])
    assert [one.name for one in path][1:] == ["pass", "member large", "POST /v2/rerank"]
