"""The load generators against a server whose behaviour is written down."""

import asyncio
from itertools import pairwise
from random import Random

import pytest

from rerankd.tools.benchmark.arrivals import poisson_arrivals
from rerankd.tools.benchmark.connection import Target
from rerankd.tools.benchmark.load import Window, closed_loop, open_loop
from rerankd.tools.benchmark.measurement import measure
from rerankd.tools.benchmark.workload import Shape, Words, Workload
from tests.canned_server import canned_server, http_answer, rank_all, ranking

_SHORT = Window(warmup_s=0.1, seconds=0.6, timeout_s=5)


def _bodies() -> Workload:
    return Workload(Shape((2,)), seed=1, words=Words(document=(2, 3)))


class _Counting:
    """Answers after `seconds`, and knows how many were being answered at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.running = self.most = self.answered = 0

    async def __call__(self, body: bytes) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        self.answered += 1
        return await rank_all(body)


class _Stalling:
    """Answers one request at a time and at once, but for one stall of the whole server."""

    def __init__(self, *, after: int, seconds: float) -> None:
        self._after, self._seconds = after, seconds
        self._one_at_a_time = asyncio.Lock()
        self._answered = 0

    async def __call__(self, body: bytes) -> bytes:
        async with self._one_at_a_time:
            self._answered += 1
            if self._answered == self._after:
                await asyncio.sleep(self._seconds)
            return await rank_all(body)


async def test_what_a_slow_server_does_not_answer_in_the_window_is_given_up_and_does_not_count() -> None:
    gone = asyncio.Event()

    async def hang(_: bytes) -> bytes:
        try:
            await asyncio.sleep(60)
        finally:
            gone.set()
        return b""

    window = Window(warmup_s=0.1, seconds=0.3, longest_warmup_s=0.2, waits_for_last=False)
    async with canned_server(hang) as url, asyncio.timeout(20):
        run = await closed_loop(Target.from_url(url), _bodies(), window, clients=2)
    assert gone.is_set()
    assert run.samples == []
    assert measure(run).pairs_per_s == 0


async def test_without_waiting_for_the_last_what_was_answered_still_counts() -> None:
    server = _Counting(0.01)
    window = Window(warmup_s=0.1, seconds=0.6, waits_for_last=False)
    async with canned_server(server) as url:
        run = await closed_loop(Target.from_url(url), _bodies(), window, clients=3)
    assert 0 < measure(run).requests <= len(run.samples) <= server.answered


async def test_a_closed_loop_never_has_more_requests_under_way_than_clients() -> None:
    server = _Counting(0.01)
    async with canned_server(server) as url:
        run = await closed_loop(Target.from_url(url), _bodies(), _SHORT, clients=3)
    assert server.most == 3
    assert len(run.samples) == server.answered
    assert {sample.outcome for sample in run.samples} == {"200"}


async def test_a_closed_loop_is_measured_from_when_every_client_has_had_an_answer() -> None:
    first = asyncio.Event()

    async def slow_at_first(body: bytes) -> bytes:
        if not first.is_set():
            await asyncio.sleep(0.4)
            first.set()
        await asyncio.sleep(0.01)
        return await rank_all(body)

    window = Window(warmup_s=0.1, seconds=0.3, timeout_s=5)
    async with canned_server(slow_at_first) as url:
        run = await closed_loop(Target.from_url(url), _bodies(), window, clients=4)
    began = min(sample.sent for sample in run.samples)
    first_answers = sorted(sample.finished for sample in run.samples)[:4]
    assert run.opened >= first_answers[-1] > began + 0.4
    assert run.closed - run.opened == pytest.approx(0.3)


async def test_an_open_loop_sends_on_while_earlier_requests_wait() -> None:
    server = _Counting(0.3)
    async with canned_server(server) as url:
        run = await open_loop(Target.from_url(url), _bodies(), _SHORT, rate=40, seed=1)
    assert server.most > 4
    assert len(run.samples) == server.answered, "every request that arrived is waited for"


async def test_an_open_loop_with_few_connections_counts_the_wait_for_one() -> None:
    async with canned_server(_Counting(0.2)) as url:
        run = await open_loop(Target.from_url(url), _bodies(), _SHORT, rate=20, seed=1, connections=1)
    slowest = max(sample.finished - sample.intended for sample in run.samples)
    assert slowest > 0.4


async def test_a_stall_counts_for_every_request_that_would_have_arrived_in_it() -> None:
    """A closed loop of one client sees a stall once: its median hides it. The open loop's does not."""
    window = Window(warmup_s=0, seconds=0.8, timeout_s=5)
    async with canned_server(_Stalling(after=5, seconds=0.5)) as url:
        opened = measure(await open_loop(Target.from_url(url), _bodies(), window, rate=100, seed=1))
    async with canned_server(_Stalling(after=5, seconds=0.5)) as url:
        closed = measure(await closed_loop(Target.from_url(url), _bodies(), window, clients=1))
    assert closed.latency_ms["max"] > 450
    assert closed.latency_ms["p50"] < 50
    assert opened.latency_ms["p50"] > 100


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (http_answer(200, ranking(2)), "200"),
        (http_answer(200, ranking(1)), "incomplete"),
        (http_answer(429, b"{}", "Retry-After: 7"), "429"),
        (http_answer(503), "503"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "connection"),
    ],
)
async def test_an_outcome_says_what_happened(answer: bytes, outcome: str) -> None:
    async def same(_: bytes) -> bytes:
        return answer

    async with canned_server(same) as url:
        window = Window(warmup_s=0, seconds=0.1)
        run = await closed_loop(Target.from_url(url), _bodies(), window, clients=1)
    assert {sample.outcome for sample in run.samples} == {outcome}
    assert run.samples[0].retry_after_s == (7 if outcome == "429" else None)
    assert run.samples[0].answered is (outcome == "200")


async def test_a_request_that_is_not_answered_in_time_is_a_timeout_and_the_next_one_goes_on() -> None:
    answered = asyncio.Event()

    async def first_never(body: bytes) -> bytes:
        if not answered.is_set():
            answered.set()
            await asyncio.sleep(30)
        return await rank_all(body)

    async with canned_server(first_never) as url:
        window = Window(warmup_s=0, seconds=0.5, timeout_s=0.2)
        run = await closed_loop(Target.from_url(url), _bodies(), window, clients=1)
    assert [sample.outcome for sample in run.samples][:2] == ["timeout", "200"]


async def test_a_server_that_is_gone_is_asked_again_but_not_in_a_spin() -> None:
    window = Window(warmup_s=0, seconds=0.3)
    run = await closed_loop(Target.from_url("http://127.0.0.1:1"), _bodies(), window, clients=2)
    assert {sample.outcome for sample in run.samples} == {"connection"}
    assert 2 <= len(run.samples) <= 16


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    arrivals = poisson_arrivals(50, 200, Random(1))
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert len(arrivals) == pytest.approx(10_000, rel=0.04)
    assert variance == pytest.approx(mean**2, rel=0.1), "exponential gaps: the deviation is the mean"
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] < 200
