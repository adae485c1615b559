"""A collector that takes connections and answers nothing: requests, the log and the end of the service go on."""

import socket
import threading
from collections.abc import Iterator

import pytest

from rerankd.telemetry.otel import Tracing

_SPANS = 500


@pytest.fixture
def silent_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "40")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "20")
        yield
        for thread in _waiting():
            thread.join()


def _waiting() -> list[threading.Thread]:
    """Threads that wait for the collector."""
    return [one for one in threading.enumerate() if one.name in {"last-spans", "OtelBatchSpanRecordProcessor"}]


@pytest.mark.usefixtures("silent_collector")
async def test_a_collector_that_does_not_answer_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    tracing = Tracing.to_collector()
    for number in range(_SPANS):
        span = tracing.request("rerank", {"number": number}, {})
        assert span is not None
        span.end()
    assert len(caplog.records) <= 3, "spans that are dropped do not flood the log"
    await tracing.close(within_s=0.1)
    assert _waiting(), "it is given up, not waited for"
    assert caplog.messages[-1] == "the last spans are lost: the collector took more than 0.1 s"
