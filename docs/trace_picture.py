"""Draws docs/trace.svg from a real trace: `python -m docs.trace_picture` ranks 30 documents by a cascade of two models,
and draws the spans that the request left.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Final

import httpx
import orjson
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rerankd.api.app import create_app
from rerankd.api.lifecycle import Lifecycle
from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.gateway.running import running_gateway
from rerankd.telemetry.metrics import PrometheusObserver
from rerankd.telemetry.otel import Tracing
from rerankd.tools.benchmark.workload import Shape, Workload

PICTURE: Final = Path(__file__).with_name("trace.svg")
_DOCUMENTS: Final = 30
_REGISTRY: Final = """default = "both"
[[model]]
name = "first"
path = "{model}"
max_length = 256
[[model]]
name = "second"
path = "{model}"
[[model]]
name = "both"
stages = ["first", "second:10"]
"""
_ROW, _LEFT, _WIDTH, _FONT = 20, 220, 620, 12
_COLORS: Final = {"pass": "#c2410c", "inference": "#ea9a5f", "queue": "#9ca3af"}
_COLOR: Final = "#4f6bbd"


def spans_of_a_cascade() -> Sequence[ReadableSpan]:
    """The spans of one request to a service in this process."""
    exporter = InMemorySpanExporter()
    with tempfile.TemporaryDirectory() as name:
        registry = Path(name) / "registry.toml"
        registry.write_text(_REGISTRY.format(model=SHIPPED_REGISTRY.parent / "minilm-qa"), encoding="utf-8")
        asyncio.run(_rank(Settings(registry=registry), Tracing(SimpleSpanProcessor(exporter)), exporter))
    return exporter.get_finished_spans()


async def _rank(settings: Settings, tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    observer = PrometheusObserver()
    async with running_gateway(settings, observer) as gateway:
        for model in gateway.service.models:
            await model.settled()
        app = create_app(settings, gateway, observer, Lifecycle(), tracing=tracing)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://docs") as client:
            for body in islice(Workload(Shape((_DOCUMENTS,)), seed=1), 4):  # the last one, when all is warm
                exporter.clear()
                content = orjson.dumps(orjson.loads(body.content) | {"model": "both"})
                (await client.post("/v2/rerank", content=content)).raise_for_status()


def drawing(spans: Sequence[ReadableSpan]) -> str:
    """A row for each span, those below one indented under it, with a bar from its start to its end."""
    rows = list(_in_order(spans, parent=None, depth=0))
    first = min(_begin(span) for span, _ in rows)
    whole = max(_end(span) for span, _ in rows) - first
    height = _ROW * (len(rows) + 1) + 8
    box = f"0 0 {_LEFT + _WIDTH + 80} {height}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for number, (span, depth) in enumerate(rows):
        y = 8 + number * _ROW
        x = _LEFT + _WIDTH * (_begin(span) - first) / whole
        width = max(1.5, _WIDTH * (_end(span) - _begin(span)) / whole)
        items = (span.attributes or {}).get("rerankd.items")
        title = span.name + (f" ({items})" if items else "")
        fill, shown = _COLORS.get(span.name, _COLOR), f"{(_end(span) - _begin(span)) / 1e6:.1f} ms"
        lines += [
            _text(title, x=8 + 14 * depth, y=y, fill="#111827"),
            f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 7}" rx="2" fill="{fill}"/>',
            _text(shown, x=x + width + 4, y=y, fill="#6b7280"),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _text(text: str, *, x: float, y: int, fill: str) -> str:
    return f'<text x="{x:.1f}" y="{y + _FONT}" font-size="{_FONT}" fill="{fill}">{escape(text)}</text>'


def _in_order(spans: Sequence[ReadableSpan], *, parent: int | None, depth: int) -> Iterator[tuple[ReadableSpan, int]]:
    children = [span for span in spans if (span.parent.span_id if span.parent else None) == parent]
    for span in sorted(children, key=_begin):
        yield span, depth
        yield from _in_order(spans, parent=_identity(span), depth=depth + 1)


def _identity(span: ReadableSpan) -> int:
    assert span.context is not None  # noqa: S101 - every span that ended has one
    return int(span.context.span_id)


def _begin(span: ReadableSpan) -> int:
    return span.start_time or 0


def _end(span: ReadableSpan) -> int:
    return span.end_time or 0


if __name__ == "__main__":
    PICTURE.write_text(drawing(spans_of_a_cascade()), encoding="utf-8")
