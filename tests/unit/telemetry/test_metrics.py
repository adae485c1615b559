"""Every fact has its metric, under the names that dashboards and alerts rely on."""

import platform

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from rerankd import __version__
from rerankd.cache.memory import MemoryCache
from rerankd.domain import Timings
from rerankd.gateway.held_bytes import HeldBytes
from rerankd.telemetry.metrics import PrometheusObserver


@pytest.fixture
def observer() -> PrometheusObserver:
    return PrometheusObserver()


def _value(observer: PrometheusObserver, name: str, **labels: str) -> float | None:
    return observer.registry.get_sample_value(name, labels)


def test_a_finished_request_is_counted_and_timed(observer: PrometheusObserver) -> None:
    observer.request_finished(model="m", dialect="jina", status=200, duration_s=0.3, key="", tokens=9)
    observer.request_finished(model="m", dialect="jina", status=429, duration_s=0.1, key="", tokens=0)
    assert _value(observer, "rerank_requests_total", model="m", dialect="jina", status="200") == 1
    assert _value(observer, "rerank_requests_total", model="m", dialect="jina", status="429") == 1
    assert _value(observer, "rerank_request_duration_seconds_count", model="m", dialect="jina") == 2
    assert _value(observer, "rerank_request_duration_seconds_sum", model="m", dialect="jina") == pytest.approx(0.4)


def test_the_stages_of_a_request_are_timed(observer: PrometheusObserver) -> None:
    timings = Timings(cache_s=1.0, tokenize_s=2.0, queue_s=3.0, inference_s=4.0)
    observer.request_scored(
        model="m", timings=timings, dropped_tokens=5, unordered_windows=2, ungraded_answers=3, comparisons=7
    )
    seconds = {
        stage: _value(observer, "rerank_stage_duration_seconds_sum", model="m", stage=stage)
        for stage in ("cache", "tokenize", "queue", "inference")
    }
    assert seconds == {"cache": 1.0, "tokenize": 2.0, "queue": 3.0, "inference": 4.0}
    assert _value(observer, "rerank_truncated_tokens_total", model="m") == 5
    assert _value(observer, "rerank_unordered_windows_total", model="m") == 2
    assert _value(observer, "rerank_ungraded_answers_total", model="m") == 3
    assert _value(observer, "rerank_comparisons_total", model="m") == 7


def test_requests_are_in_flight_until_they_are_answered(observer: PrometheusObserver) -> None:
    observer.request_started()
    observer.request_started()
    observer.request_finished(model="m", dialect="jina", status=200, duration_s=0.3, key="", tokens=9)
    assert _value(observer, "rerank_requests_in_flight") == 1


def test_names_of_keys_are_not_told_unless_the_reader_may_know_them(observer: PrometheusObserver) -> None:
    for key in ("a-customers-name", "b", ""):
        observer.request_finished(model="m", dialect="jina", status=200, duration_s=0.1, key=key, tokens=5)
    assert b"a-customers-name" not in generate_latest(observer.registry)
    assert _value(observer, "rerank_key_requests_total", key="any", outcome="answered") == 2
    assert _value(observer, "rerank_key_requests_total", key="none", outcome="answered") == 1
    assert _value(observer, "rerank_key_tokens_total", key="any") == 10


def test_what_each_key_asks_for_is_counted() -> None:
    observer = PrometheusObserver(names_keys=True)
    for status, tokens in ((200, 90), (429, 0), (503, 0), (200, 10)):
        observer.request_finished(model="m", dialect="jina", status=status, duration_s=0.1, key="a", tokens=tokens)
    assert _value(observer, "rerank_key_requests_total", key="a", outcome="answered") == 2
    assert _value(observer, "rerank_key_requests_total", key="a", outcome="refused") == 1
    assert _value(observer, "rerank_key_requests_total", key="a", outcome="failed") == 1
    assert _value(observer, "rerank_key_tokens_total", key="a") == 100


def test_a_thousand_keys_do_not_make_a_thousand_series() -> None:
    observer = PrometheusObserver(names_keys=True)
    for number in range(1000):
        observer.request_finished(
            model="m", dialect="jina", status=200, duration_s=0.1, key=f"key-{number % 500}", tokens=1
        )
    keys = {
        sample.labels["key"]
        for family in observer.registry.collect()
        for sample in family.samples
        if "key" in sample.labels
    }
    assert len(keys) == 101
    assert _value(observer, "rerank_key_tokens_total", key="key-7") == 2
    assert _value(observer, "rerank_key_tokens_total", key="other") == 800


def test_an_engine_shows_how_busy_it_is_and_how_much_waits_for_it(observer: PrometheusObserver) -> None:
    observer.engine_started(model="m", workers=2, max_waiting_tokens=1000)
    observer.batch_scored(model="m", pairs=4, tokens=90, padded_tokens=100, seconds=0.2)
    observer.queue_changed(model="m", waiting_tokens=300, waiting_s=1.5)
    assert _value(observer, "rerank_workers", model="m") == 2
    assert _value(observer, "rerank_pass_duration_seconds_sum", model="m") == pytest.approx(0.2)
    assert _value(observer, "rerank_queue_limit_tokens", model="m") == 1000
    assert _value(observer, "rerank_queue_seconds", model="m") == 1.5
    assert _value(observer, "rerank_threads_given_up_total", model="m") == 0
    observer.thread_given_up(model="m")
    assert _value(observer, "rerank_threads_given_up_total", model="m") == 1


def test_the_build_is_named(observer: PrometheusObserver) -> None:
    (build,) = [family for family in observer.registry.collect() if family.name == "rerank_build_info"]
    ((_, labels, value, *_),) = build.samples
    assert (labels["version"], labels["python"], value) == (__version__, platform.python_version(), 1)
    assert labels["kernels"] in {"supported", "unsupported", "missing"}


def test_a_batch_is_measured_with_its_padding(observer: PrometheusObserver) -> None:
    observer.batch_scored(model="m", pairs=4, tokens=90, padded_tokens=100, seconds=0.2)
    assert _value(observer, "rerank_batch_pairs_sum", model="m") == 4
    assert _value(observer, "rerank_batch_tokens_sum", model="m") == 90
    assert _value(observer, "rerank_padding_ratio_sum", model="m") == pytest.approx(0.1)


def test_failures_refusals_and_saved_work_are_counted(observer: PrometheusObserver) -> None:
    observer.batch_failed(model="m", pairs=4)
    observer.request_shed(model="m", reason="overloaded")
    observer.work_cancelled(model="m", tokens=70)
    observer.queue_changed(model="m", waiting_tokens=30, waiting_s=1.5)
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


async def test_cache_and_held_bytes_are_measured_when_metrics_are_scraped(observer: PrometheusObserver) -> None:
    cache = MemoryCache(max_entries=10)
    held = HeldBytes(1000)
    observer.cache_opened(entries=cache.__len__, size=lambda: cache.size)
    observer.watch_held_bytes(lambda: held.total)
    assert _value(observer, "rerank_cache_entries") == _value(observer, "rerank_held_bytes") == 0
    await cache.put_many({b"a" * 16: b"b" * 12, b"c" * 16: b"d" * 12})
    held.total = 7
    assert _value(observer, "rerank_cache_entries") == 2
    assert _value(observer, "rerank_cache_bytes") == cache.size > 0
    assert _value(observer, "rerank_held_bytes") == 7


@pytest.mark.parametrize(("ready", "expected"), [(True, 1.0), (False, 0.0)])
def test_readiness_is_a_gauge(observer: PrometheusObserver, ready: bool, expected: float) -> None:
    observer.model_readiness_changed(model="m", ready=ready)
    assert _value(observer, "rerank_model_ready", model="m") == expected


def test_the_process_is_measured_too(observer: PrometheusObserver) -> None:
    assert (_value(observer, "rerank_process_memory_bytes") or 0) > 10**6
    assert (_value(observer, "process_cpu_seconds_total") or 0) > 0


def test_two_services_in_one_process_do_not_meet() -> None:
    one, other = PrometheusObserver(), PrometheusObserver()
    one.queue_changed(model="m", waiting_tokens=1, waiting_s=0.1)
    assert isinstance(other.registry, CollectorRegistry)
    assert _value(other, "rerank_queue_tokens", model="m") is None
