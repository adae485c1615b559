"""Facts of the scoring path. The hot path reports them and does not know the listener (Prometheus, a test)."""

from collections.abc import Callable
from typing import Final, Protocol

from rerankd.domain import Timings

# Why a connection is refused: too many, a head too slow or too large, invalid HTTP, or an answer that is not read.
REFUSAL_REASONS: Final = ("too_many", "slow_head", "large_head", "malformed", "slow_reader")


class Observer(Protocol):
    def request_started(self) -> None: ...

    def request_finished(
        self, *, model: str, dialect: str, status: int, duration_s: float, key: str, tokens: int
    ) -> None: ...

    def job_line_tried(self, *, model: str, status: int, key: str, tokens: int) -> None: ...

    def job_changed(self, *, running: int, ended: str = "") -> None: ...

    def request_scored(
        self,
        *,
        model: str,
        timings: Timings,
        dropped_tokens: int,
        unordered_windows: int,
        ungraded_answers: int,
        comparisons: int,
    ) -> None: ...

    def request_fused(self, *, model: str, mode: str) -> None: ...

    def request_abstained(self, *, model: str) -> None: ...

    def engine_started(self, *, model: str, workers: int, max_waiting_tokens: int) -> None: ...

    def batch_scored(self, *, model: str, pairs: int, tokens: int, padded_tokens: int, seconds: float) -> None: ...

    def batch_failed(self, *, model: str, pairs: int) -> None: ...

    def thread_given_up(self, *, model: str) -> None: ...

    def queue_changed(self, *, model: str, waiting_tokens: int, waiting_s: float) -> None: ...

    def work_cancelled(self, *, model: str, tokens: int) -> None: ...

    def request_shed(self, *, model: str, reason: str) -> None: ...

    def deadline_missed(self, *, model: str) -> None: ...

    def pairs_coalesced(self, *, model: str, pairs: int) -> None: ...

    def cache_looked_up(self, *, hits: int, misses: int) -> None: ...

    def cache_failed(self, *, operation: str) -> None: ...

    def cache_opened(self, *, entries: Callable[[], int], size: Callable[[], int]) -> None: ...

    def model_readiness_changed(self, *, model: str, ready: bool) -> None: ...

    def model_certified(self, *, model: str, certified: bool) -> None: ...

    def model_removed(self, *, model: str) -> None: ...

    def remote_changed(self, *, model: str, away: bool) -> None: ...

    def fallback_asked(self, *, model: str, reason: str) -> None: ...

    def connections_changed(self, *, open_connections: int) -> None: ...

    def connection_refused(self, *, reason: str) -> None: ...


class Silent:
    """An observer without a listener, for work outside of the service."""

    def request_started(self) -> None:
        pass

    def request_finished(
        self, *, model: str, dialect: str, status: int, duration_s: float, key: str, tokens: int
    ) -> None:
        pass

    def job_line_tried(self, *, model: str, status: int, key: str, tokens: int) -> None:
        pass

    def job_changed(self, *, running: int, ended: str = "") -> None:
        pass

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
        pass

    def request_fused(self, *, model: str, mode: str) -> None:
        pass

    def request_abstained(self, *, model: str) -> None:
        pass

    def engine_started(self, *, model: str, workers: int, max_waiting_tokens: int) -> None:
        pass

    def batch_scored(self, *, model: str, pairs: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        pass

    def batch_failed(self, *, model: str, pairs: int) -> None:
        pass

    def thread_given_up(self, *, model: str) -> None:
        pass

    def queue_changed(self, *, model: str, waiting_tokens: int, waiting_s: float) -> None:
        pass

    def work_cancelled(self, *, model: str, tokens: int) -> None:
        pass

    def request_shed(self, *, model: str, reason: str) -> None:
        pass

    def deadline_missed(self, *, model: str) -> None:
        pass

    def pairs_coalesced(self, *, model: str, pairs: int) -> None:
        pass

    def cache_looked_up(self, *, hits: int, misses: int) -> None:
        pass

    def cache_failed(self, *, operation: str) -> None:
        pass

    def cache_opened(self, *, entries: Callable[[], int], size: Callable[[], int]) -> None:
        pass

    def model_readiness_changed(self, *, model: str, ready: bool) -> None:
        pass

    def model_certified(self, *, model: str, certified: bool) -> None:
        pass

    def model_removed(self, *, model: str) -> None:
        pass

    def remote_changed(self, *, model: str, away: bool) -> None:
        pass

    def fallback_asked(self, *, model: str, reason: str) -> None:
        pass

    def connections_changed(self, *, open_connections: int) -> None:
        pass

    def connection_refused(self, *, reason: str) -> None:
        pass
