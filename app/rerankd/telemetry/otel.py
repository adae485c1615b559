"""Traces by OpenTelemetry, sent as OTLP over HTTP. Imported only where traces are on; the extra `otel` installs it.

Where spans go, how many requests are sampled and what the service is called say OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME and so on).
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from threading import Thread
from time import time_ns
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelsSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rerankd import __version__
from rerankd.gateway.failures import CallerGone
from rerankd.telemetry.spans import Attributes, Span

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NS_PER_S: Final = 1_000_000_000
# A collector that does not answer holds up the end of the service this long at most.
_LAST_SPANS_S: Final = 5.0

logger = logging.getLogger(__name__)


class Tracing:
    """Opens the spans of requests that come in."""

    def __init__(self, sink: SpanProcessor) -> None:
        resource = Resource({SERVICE_NAME: "rerankd", SERVICE_VERSION: __version__}).merge(
            OTELResourceDetector().detect()
        )
        # What a client sends wrongly is no warning for the operator, and its headers are not for the log.
        logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(sink)
        self._tracer = self._provider.get_tracer("rerankd", __version__)

    @classmethod
    def to_collector(cls) -> "Tracing":
        """Send spans to a collector, from a thread of their own."""
        return cls(BatchSpanProcessor(OTLPSpanExporter()))

    def request(self, name: str, attributes: Attributes, headers: Mapping[str, str]) -> Span | None:
        """The span of a request, part of the client's trace if its headers name one. None: it is not sampled."""
        parent = _PROPAGATOR.extract(headers)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        return _Span(span, self._tracer) if span.is_recording() else None

    async def close(self, *, within_s: float = _LAST_SPANS_S) -> None:
        """Send what is left, as far as the collector takes it in time."""
        # A daemon, because the interpreter would wait for it: the exporter waits for its collector for half a minute.
        closing = Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, within_s)
        if closing.is_alive():
            logger.warning("the last spans are lost: the collector took more than %g s", within_s)


class _Span:
    def __init__(self, span: OtelsSpan, tracer: Tracer) -> None:
        self._span = span
        self._tracer = tracer

    @property
    def trace_id(self) -> str:
        return format(self._context.trace_id, "032x")

    @property
    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(self._span))
        return carrier

    def child(self, name: str, attributes: Attributes, *, outgoing: bool = False) -> "Span":
        kind = SpanKind.CLIENT if outgoing else SpanKind.INTERNAL
        return _Span(self._tracer.start_span(name, set_span_in_context(self._span), kind, attributes), self._tracer)

    def joint(self, name: str, attributes: Attributes, others: Sequence[Span]) -> "Span":
        links = [Link(one._context) for one in (self, *others) if isinstance(one, _Span)]  # noqa: SLF001 - of our own kind
        parent = set_span_in_context(self._span if len(links) == 1 else INVALID_SPAN)
        span = self._tracer.start_span(name, parent, SpanKind.INTERNAL, attributes, links)
        return _Span(span, self._tracer)

    def record(self, name: str, attributes: Attributes, *, ago_s: float, seconds: float) -> None:
        began = time_ns() - int(ago_s * _NS_PER_S)
        parent = set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, SpanKind.INTERNAL, attributes, start_time=began)
        span.end(began + int(seconds * _NS_PER_S))

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def end(self, error: BaseException | None = None) -> None:
        """Of an error only the kind is kept: its message may hold a part of a text."""
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            if not isinstance(error, CallerGone | asyncio.CancelledError):
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    @property
    def _context(self) -> SpanContext:
        return self._span.get_span_context()
