"""Every fact has its metric, under the names that dashboards and alerts rely on."""

import pytest
from prometheus_client import CollectorRegistry

from app.domain import Timings
from app.metrics import PrometheusObserver


@pytest.fixture
def observer() -> PrometheusObserver:
    return PrometheusObserver()


def _value(observer: PrometheusObserver, name: str, **labels: str) -> float | None:
    return observer.registry.get_sample_value(name, labels)


def test_a_finished_request_is_counted_and_timed(observer: PrometheusObserver) -> None:
    observer.request_finished(model="m", dialect="jina", status=200, duration_s=0.3)
    observer.request_finished(model="m", dialect="jina", status=429, duration_s=0.1)
    assert _value(observer, "rerank_requests_total", model="m", dialect="jina", status="200") == 1
    assert _value(observer, "rerank_requests_total", model="m", dialect="jina", status="429") == 1
    assert _value(observer, "rerank_request_duration_seconds_count", model="m", dialect="jina") == 2
    assert _value(observer, "rerank_request_duration_seconds_sum", model="m", dialect="jina") == pytest.approx(0.4)


def test_the_stages_of_a_request_are_timed(observer: PrometheusObserver) -> None:
    timings = Timings(cache_s=1.0, tokenize_s=2.0, queue_s=3.0, inference_s=4.0)
    observer.request_scored(model="m", timings=timings, dropped_tokens=5, unordered_windows=2)
    seconds = {
        stage: _value(observer, "rerank_stage_duration_seconds_sum", model="m", stage=stage)
        for stage in ("cache", "tokenize", "queue", "inference")
    }
    assert seconds == {"cache": 1.0, "tokenize": 2.0, "queue": 3.0, "inference": 4.0}
    assert _value(observer, "rerank_truncated_tokens_total", model="m") == 5
    assert _value(observer, "rerank_unordered_windows_total", model="m") == 2


def test_a_batch_is_measured_with_its_padding(observer: PrometheusObserver) -> None:
    observer.batch_scored(model="m", pairs=4, tokens=90, padded_tokens=100)
    assert _value(observer, "rerank_batch_pairs_sum", model="m") == 4
    assert _value(observer, "rerank_batch_tokens_sum", model="m") == 90
    assert _value(observer, "rerank_padding_ratio_sum", model="m") == pytest.approx(0.1)


def test_failures_refusals_and_saved_work_are_counted(observer: PrometheusObserver) -> None:
    observer.batch_failed(model="m", pairs=4)
    observer.request_shed(model="m", reason="overloaded")
    observer.work_cancelled(model="m", tokens=70)
    observer.queue_changed(model="m", waiting_tokens=30)
    assert _value(observer, "rerank_failed_batches_total", model="m") == 1
    assert _value(observer, "rerank_shed_total", model="m", reason="overloaded") == 1
    assert _value(observer, "rerank_cancelled_tokens_total", model="m") == 70
    assert _value(observer, "rerank_queue_tokens", model="m") == 30


def test_the_cache_is_counted_from_zero(observer: PrometheusObserver) -> None:
    assert _value(observer, "rerank_cache_pairs_total", result="hit") == 0
    assert _value(observer, "rerank_cache_errors_total", operation="get") == 0
    observer.cache_looked_up(hits=3, misses=2)
    observer.cache_failed(operation="put")
    assert _value(observer, "rerank_cache_pairs_total", result="hit") == 3
    assert _value(observer, "rerank_cache_pairs_total", result="miss") == 2
    assert _value(observer, "rerank_cache_errors_total", operation="put") == 1


@pytest.mark.parametrize(("ready", "expected"), [(True, 1.0), (False, 0.0)])
def test_readiness_is_a_gauge(observer: PrometheusObserver, ready: bool, expected: float) -> None:
    observer.model_readiness_changed(model="m", ready=ready)
    assert _value(observer, "rerank_model_ready", model="m") == expected


def test_the_process_is_measured_too(observer: PrometheusObserver) -> None:
    assert (_value(observer, "rerank_process_memory_bytes") or 0) > 10**6
    assert (_value(observer, "process_cpu_seconds_total") or 0) > 0


def test_two_services_in_one_process_do_not_meet() -> None:
    one, other = PrometheusObserver(), PrometheusObserver()
    one.queue_changed(model="m", waiting_tokens=1)
    assert isinstance(other.registry, CollectorRegistry)
    assert _value(other, "rerank_queue_tokens", model="m") is None
