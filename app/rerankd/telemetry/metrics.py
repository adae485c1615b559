"""Prometheus metrics from the facts of the scoring path. Only this file and `/metrics` know Prometheus."""

import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, TypeVar

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from rerankd import __version__
from rerankd.domain import Timings
from rerankd.engines.onnx.kernel_support import why_not_compiled, why_not_usable
from rerankd.telemetry.gpu_memory import GpuMemoryReader
from rerankd.telemetry.logs import dropped_lines
from rerankd.telemetry.observer import REFUSAL_REASONS
from rerankd.telemetry.spans import current_span

Metric = TypeVar("Metric", Counter, Histogram)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
# At most this many API keys have their own time series, if names may be shown. The others count as `other`, so that
# metrics stay bounded.
_MOST_KEYS: Final = 100
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75)


class GpuMemoryCollector(Collector):
    """Asks the driver at every scrape. No samples without a GPU."""

    def __init__(self, reader: GpuMemoryReader) -> None:
        self._reader = reader

    def collect(self) -> Iterator[GaugeMetricFamily]:
        used = GaugeMetricFamily(
            "rerank_gpu_memory_used_bytes", "Memory in use on a GPU, by everybody.", labels=["gpu"]
        )
        total = GaugeMetricFamily("rerank_gpu_memory_bytes", "Memory of a GPU.", labels=["gpu"])
        for index, memory in self._reader.read():
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
        yield from (used, total)


class DroppedLogLines(Collector):
    """Counted by the log writer, whose threads must not wait."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        dropped = CounterMetricFamily("rerank_log_lines_dropped", "Log lines that nobody read in time.")
        dropped.add_metric([], dropped_lines())
        yield dropped


class PrometheusObserver:
    """Keeps all metrics in its own registry, so that two services in one process do not collide."""

    def __init__(self, gpus: GpuMemoryReader | None = None, *, names_keys: bool = False) -> None:
        """`names_keys`: whether readers of the metrics may see the names of API keys."""
        self._names_keys = names_keys
        self._children: dict[tuple[object, tuple[str, ...]], Any] = {}
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._requests = Counter(
            "rerank_requests_total", "Requests answered.", ["model", "dialect", "status"], registry=registry
        )
        self._durations = Histogram(
            "rerank_request_duration_seconds",
            "From a request's first byte to its answer.",
            ["model", "dialect"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "rerank_stage_duration_seconds",
            "Time of a request in one part of the scoring path.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge("rerank_requests_in_flight", "Requests that are being answered.", registry=registry)
        self._make_key_metrics()
        self._make_job_metrics()
        self._make_engine_metrics()
        self._make_batch_metrics()
        self._make_queue_metrics()
        self._make_text_metrics()
        self._make_cache_metrics()
        self._make_connection_metrics()
        self._make_model_metrics()
        memory = Gauge("rerank_process_memory_bytes", "Resident memory of the service.", registry=registry)
        memory.set_function(lambda: float(psutil.Process().memory_info().rss))
        registry.register(GpuMemoryCollector(gpus or GpuMemoryReader()))
        registry.register(DroppedLogLines())

        build = Gauge("rerank_build_info", "What runs, always 1.", ["version", "python", "kernels"], registry=registry)
        build.labels(__version__, platform.python_version(), _kernels()).set(1)

    def _make_model_metrics(self) -> None:
        self._certified = Gauge(
            "rerank_model_certified",
            "1 if the model ranks obvious answers first, 0 if its scores may be noise.",
            ["model"],
            registry=self.registry,
        )
        self._ready = Gauge("rerank_model_ready", "1 while the model can answer.", ["model"], registry=self.registry)
        self._remote = Gauge(
            "rerank_remote_up", "0 while a remote model is away and is not asked.", ["model"], registry=self.registry
        )
        self._fallbacks = Counter(
            "rerank_fallbacks_total",
            "Requests that a model could not answer and its fallback was asked.",
            ["model", "reason"],
            registry=self.registry,
        )

        self._fused = Counter(
            "rerank_fused_requests_total",
            "Requests whose order is made of the model's scores and those of the first stage.",
            ["model", "mode"],
            registry=self.registry,
        )

        self._abstained = Counter(
            "rerank_abstained_requests_total",
            "Requests whose answer says that its order had better not be relied on.",
            ["model"],
            registry=self.registry,
        )

    def _make_key_metrics(self) -> None:
        self._keys: set[str] = set()
        self._key_requests = Counter(
            "rerank_key_requests_total", "Requests by whose key they had.", ["key", "outcome"], registry=self.registry
        )
        self._key_tokens = Counter(
            "rerank_key_tokens_total", "Tokens read for whose key.", ["key"], registry=self.registry
        )

    def _make_job_metrics(self) -> None:
        self._job_lines = Counter(
            "rerank_job_lines_total",
            "Lines of jobs that were tried; 429 and 503 are tried again.",
            ["model", "status"],
            registry=self.registry,
        )
        self._jobs_running = Gauge("rerank_jobs_running", "Jobs that this process works on.", registry=self.registry)
        self._jobs = Counter("rerank_jobs_total", "Jobs that have ended, by how.", ["status"], registry=self.registry)

    def _make_engine_metrics(self) -> None:
        self._workers = Gauge("rerank_workers", "Forward passes that run at a time.", ["model"], registry=self.registry)
        self._pass_durations = Histogram(
            "rerank_pass_duration_seconds",
            "Time of a forward pass.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._queue_limit = Gauge(
            "rerank_queue_limit_tokens", "Tokens that may wait.", ["model"], registry=self.registry
        )
        self._queue_seconds = Gauge(
            "rerank_queue_seconds", "How long what waits will take.", ["model"], registry=self.registry
        )
        self._threads_given_up = Counter(
            "rerank_threads_given_up_total",
            "Threads that were replaced because a forward pass hung in them.",
            ["model"],
            registry=self.registry,
        )

    def _make_batch_metrics(self) -> None:
        self._batch_pairs = Histogram(
            "rerank_batch_pairs", "Pairs per forward pass.", ["model"], buckets=_PAIRS, registry=self.registry
        )
        self._batch_tokens = Histogram(
            "rerank_batch_tokens",
            "Tokens per forward pass, padding left out.",
            ["model"],
            buckets=_TOKENS,
            registry=self.registry,
        )
        self._padding = Histogram(
            "rerank_padding_ratio",
            "Share of a forward pass's padded area that is padding.",
            ["model"],
            buckets=_RATIOS,
            registry=self.registry,
        )
        self._failed_batches = Counter(
            "rerank_failed_batches_total", "Forward passes that raised.", ["model"], registry=self.registry
        )

    def _make_queue_metrics(self) -> None:
        self._queue = Gauge("rerank_queue_tokens", "Tokens that wait.", ["model"], registry=self.registry)
        self._cancelled = Counter(
            "rerank_cancelled_tokens_total",
            "Tokens that waited and were dropped because nobody wanted the answer any more.",
            ["model"],
            registry=self.registry,
        )
        self._shed = Counter(
            "rerank_shed_total", "Requests refused at once.", ["model", "reason"], registry=self.registry
        )
        self._deadlines_missed = Counter(
            "rerank_deadline_missed_total",
            "Admitted requests whose deadline came before their last score.",
            ["model"],
            registry=self.registry,
        )

    def _make_text_metrics(self) -> None:
        self._truncated = Counter(
            "rerank_truncated_tokens_total",
            "Document tokens that truncation cut off.",
            ["model"],
            registry=self.registry,
        )
        self._unordered = Counter(
            "rerank_unordered_windows_total",
            "Windows and comparisons of which a model said nothing.",
            ["model"],
            registry=self.registry,
        )
        self._ungraded = Counter(
            "rerank_ungraded_answers_total",
            "Answers without a grade, of models that write grades.",
            ["model"],
            registry=self.registry,
        )
        self._comparisons = Counter(
            "rerank_comparisons_total",
            "Comparisons of documents, answered by a model or out of the cache.",
            ["model"],
            registry=self.registry,
        )

    def _make_cache_metrics(self) -> None:
        self._cache_pairs = Counter("rerank_cache_pairs_total", "Pairs looked up.", ["result"], registry=self.registry)
        for result in ("hit", "miss", "coalesced"):
            self._cache_pairs.labels(result)
        self._cache_errors = Counter(
            "rerank_cache_errors_total",
            "Cache calls that failed, and entries with a wrong signature; each is a miss.",
            ["operation"],
            registry=self.registry,
        )
        for operation in ("get", "put", "verify"):
            self._cache_errors.labels(operation)

    def _make_connection_metrics(self) -> None:
        self._connections = Gauge("rerank_connections", "Open connections.", registry=self.registry)
        self._refused_connections = Counter(
            "rerank_connections_refused_total",
            "Connections that were turned away or broken off by this service.",
            ["reason"],
            registry=self.registry,
        )
        for reason in REFUSAL_REASONS:
            self._refused_connections.labels(reason)

    def request_started(self) -> None:
        self._in_flight.inc()

    def request_finished(
        self, *, model: str, dialect: str, status: int, duration_s: float, key: str, tokens: int
    ) -> None:
        self._in_flight.dec()
        self._child(self._requests, model, dialect, str(status)).inc()
        self._child(self._durations, model, dialect).observe(duration_s, _exemplar())
        label = self._key_label(key)
        self._child(self._key_requests, label, _outcome(status)).inc()
        self._child(self._key_tokens, label).inc(tokens)

    def job_line_tried(self, *, model: str, status: int, key: str, tokens: int) -> None:
        self._child(self._job_lines, model, str(status)).inc()
        self._child(self._key_tokens, self._key_label(key)).inc(tokens)

    def job_changed(self, *, running: int, ended: str = "") -> None:
        self._jobs_running.set(running)
        if ended:
            self._child(self._jobs, ended).inc()

    def _child(self, metric: Metric, *labels: str) -> Metric:
        """What `labels` gives, without its lock and its checks: each request asks a dozen times."""
        child = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        found: Metric = child
        return found

    def _key_label(self, key: str) -> str:
        if not key:
            return "none"
        if not self._names_keys:
            return "any"
        if key not in self._keys:
            if len(self._keys) >= _MOST_KEYS:
                return "other"
            self._keys.add(key)
        return key

    def request_scored(
        self,
        *,
        model: str,
        timings: Timings,
        dropped_tokens: int,
        unordered_windows: int,
        ungraded_answers: int,
        comparisons: int,
    ) -> None:
        exemplar = _exemplar()
        for stage, seconds in (
            ("cache", timings.cache_s),
            ("tokenize", timings.tokenize_s),
            ("queue", timings.queue_s),
            ("inference", timings.inference_s),
        ):
            self._child(self._stages, model, stage).observe(seconds, exemplar)
        self._child(self._truncated, model).inc(dropped_tokens)
        self._child(self._unordered, model).inc(unordered_windows)
        self._child(self._ungraded, model).inc(ungraded_answers)
        self._child(self._comparisons, model).inc(comparisons)

    def request_fused(self, *, model: str, mode: str) -> None:
        self._child(self._fused, model, mode).inc()

    def request_abstained(self, *, model: str) -> None:
        self._child(self._abstained, model).inc()

    def engine_started(self, *, model: str, workers: int, max_waiting_tokens: int) -> None:
        self._workers.labels(model).set(workers)
        self._queue_limit.labels(model).set(max_waiting_tokens)
        self._threads_given_up.labels(model)

    def batch_scored(self, *, model: str, pairs: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        self._pass_durations.labels(model).observe(seconds)
        self._batch_pairs.labels(model).observe(pairs)
        self._batch_tokens.labels(model).observe(tokens)
        self._padding.labels(model).observe(1 - tokens / padded_tokens)

    def batch_failed(self, *, model: str, pairs: int) -> None:  # noqa: ARG002 - the fact has more than the metric
        self._failed_batches.labels(model).inc()

    def thread_given_up(self, *, model: str) -> None:
        self._threads_given_up.labels(model).inc()

    def queue_changed(self, *, model: str, waiting_tokens: int, waiting_s: float) -> None:
        self._queue.labels(model).set(waiting_tokens)
        self._queue_seconds.labels(model).set(waiting_s)

    def exposition(self) -> bytes:
        """All metrics of this process, in Prometheus's text format."""
        return generate_latest(self.registry)

    def waiting_s(self, models: Iterable[str]) -> float:
        """How long what waits for these models will take."""
        return sum(self._sample("rerank_queue_seconds", model) for model in models)

    def computed_s(self, models: Iterable[str]) -> float:
        """How long the engines of these models have computed, each worker's part of it."""
        return sum(
            self._sample("rerank_pass_duration_seconds_sum", model) / max(1.0, self._sample("rerank_workers", model))
            for model in models
        )

    def _sample(self, name: str, model: str) -> float:
        return self.registry.get_sample_value(name, {"model": model}) or 0.0

    def work_cancelled(self, *, model: str, tokens: int) -> None:
        self._cancelled.labels(model).inc(tokens)

    def request_shed(self, *, model: str, reason: str) -> None:
        self._shed.labels(model, reason).inc()

    def deadline_missed(self, *, model: str) -> None:
        self._deadlines_missed.labels(model).inc()

    def pairs_coalesced(self, *, model: str, pairs: int) -> None:  # noqa: ARG002 - the fact has more than the metric
        self._cache_pairs.labels("coalesced").inc(pairs)

    def cache_looked_up(self, *, hits: int, misses: int) -> None:
        self._child(self._cache_pairs, "hit").inc(hits)
        self._child(self._cache_pairs, "miss").inc(misses)

    def cache_failed(self, *, operation: str) -> None:
        self._cache_errors.labels(operation).inc()

    def cache_opened(self, *, entries: Callable[[], int], size: Callable[[], int]) -> None:
        held = Gauge("rerank_cache_entries", "Scores and lists in the cache of this process.", registry=self.registry)
        held.set_function(entries)
        taken = Gauge("rerank_cache_bytes", "What the cache of this process takes.", registry=self.registry)
        taken.set_function(size)

    def watch_held_bytes(self, total: Callable[[], int]) -> None:
        """Show how many bytes of bodies and answers are held at a time."""
        held = Gauge("rerank_held_bytes", "Bytes of bodies and answers that are held.", registry=self.registry)
        held.set_function(total)

    def connections_changed(self, *, open_connections: int) -> None:
        self._connections.set(open_connections)

    def connection_refused(self, *, reason: str) -> None:
        self._refused_connections.labels(reason).inc()

    def model_readiness_changed(self, *, model: str, ready: bool) -> None:
        # Initialize the model's counters with 0, so that the first increase shows up as a rate.
        for counter in (self._failed_batches, self._cancelled, self._truncated, self._deadlines_missed):
            counter.labels(model)
        for reason in ("overloaded", "deadline_exceeded"):
            self._shed.labels(model, reason)
        self._ready.labels(model).set(ready)

    def remote_changed(self, *, model: str, away: bool) -> None:
        self._remote.labels(model).set(not away)

    def fallback_asked(self, *, model: str, reason: str) -> None:
        self._fallbacks.labels(model, reason).inc()

    def model_certified(self, *, model: str, certified: bool) -> None:
        self._certified.labels(model).set(certified)

    def model_removed(self, *, model: str) -> None:
        """Show its states no longer. What it counted stays: counters must not fall."""
        states = (
            self._ready,
            self._certified,
            self._remote,
            self._workers,
            self._queue_limit,
            self._queue,
            self._queue_seconds,
        )
        for gauge in states:
            with suppress(KeyError):
                gauge.remove(model)


def _outcome(status: int) -> str:
    if status < 400:
        return "answered"
    return "refused" if status == 429 else "failed"


def _kernels() -> str:
    """Whether our own kernels were compiled, and whether this CPU can run them."""
    if why_not_compiled() is not None:
        return "missing"
    return "supported" if why_not_usable() is None else "unsupported"


def _exemplar() -> dict[str, str] | None:
    """The trace of the current request, by which a histogram's bucket names one of its requests."""
    span = current_span()
    return None if span is None else {"trace_id": span.trace_id}
