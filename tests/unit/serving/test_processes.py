"""Two front ends share a scheduler: its queue, passes, fairness and deadlines are those of one process."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from rerankd.api.fronts import check_cores
from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.ticket import Intake
from rerankd.batching.work import Work, WorkItem
from rerankd.concurrency.channel import Channel, Reply
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.domain import Terms
from rerankd.errors import ConfigError, DeadlineExceeded, Overloaded, RateLimited
from rerankd.gateway.central_rates import CentralBuckets, CentralRates
from rerankd.gateway.rates import Rates, RequestMeter
from rerankd.serving.assembly import Opened, load_parts
from rerankd.serving.processes.client import SchedulerEngines
from rerankd.serving.processes.scheduler import Scheduler
from rerankd.tasks.encoding import Encoding
from rerankd.telemetry.observer import Silent
from tests.fakes import ArithmeticEngine, logit_of, running_batcher
from tests.tiny_models import TINY_BERT
from tests.unit.concurrency.test_channel import channels

_SPEC = ModelSpec(name="tiny", path=str(TINY_BERT))


class _Engines:
    """Opens one model, over an engine that tells which rows shared a pass and that can be made to wait."""

    def __init__(self, engine: ArithmeticEngine, *, max_waiting_tokens: int = 1_000_000) -> None:
        self.engine = engine
        self.opened = 0
        self.open_now = 0
        self._max_waiting_tokens = max_waiting_tokens
        self._read = load_parts(_SPEC, Settings()).read

    @asynccontextmanager
    async def open(self, spec: ModelSpec, *, wanted: bool) -> AsyncIterator[Opened]:
        if spec.name == "broken":
            raise ConfigError("it is broken")
        self.opened += 1
        self.open_now += 1
        try:
            async with running_batcher(self.engine, Silent(), max_waiting_tokens=self._max_waiting_tokens) as batcher:
                yield Opened(self._read, batcher, str)
        finally:
            self.open_now -= 1


class _Front:
    def __init__(self, channel: Channel, engines: SchedulerEngines, intake: Intake[Any, Any]) -> None:
        self.channel = channel
        self.engines = engines
        self.intake = intake

    async def run(self, *rows: Sequence[int], terms: Terms = Terms()) -> list[float]:  # noqa: B008 - it is frozen
        tokens = sum(map(len, rows))
        estimate = Estimate(characters=4 * tokens, items=len(rows), longest=512)
        async with self.intake.admit(estimate, terms) as ticket:
            outcome = await ticket.run(_items(rows))
        return [float(result[0]) for result in outcome.results]

    def start(self, *rows: Sequence[int], terms: Terms = Terms()) -> "asyncio.Task[list[float]]":  # noqa: B008
        return asyncio.create_task(self.run(*rows, terms=terms))


def _items(rows: Sequence[Sequence[int]]) -> list[WorkItem[Any]]:
    arrays = [np.array(row) for row in rows]
    return [WorkItem(ids.tobytes(), len(ids), None, Encoding(ids, 0)) for ids in arrays]


@asynccontextmanager
async def _fronts(engines: _Engines, number: int = 2) -> AsyncIterator[list[_Front]]:
    settings = Settings()
    async with Scheduler.over(engines, settings, Silent()) as scheduler, AsyncExitStack() as stack:
        fronts = []
        for _ in range(number):
            ours, theirs, _ = await stack.enter_async_context(channels())
            session = scheduler.attend(theirs)
            stack.callback(session.end)
            remote = stack.enter_context(SchedulerEngines.running(ours, settings))
            opened = await stack.enter_async_context(remote.open(_SPEC, wanted=False))
            fronts.append(_Front(ours, remote, opened.intake))
        stack.callback(engines.engine.gate.set)
        yield fronts


async def _until_passes(engine: ArithmeticEngine, passes: int) -> None:
    async with asyncio.timeout(20):
        while len(engine.batches) < passes:  # noqa: ASYNC110 - the engine runs in a thread and knows no asyncio
            await asyncio.sleep(0.001)


async def _until_waiting(fronts: Sequence[_Front]) -> None:
    """What the fronts have sent is queued: an answer comes behind it."""
    for _ in range(3):
        for front in fronts:
            await front.intake.fits(Estimate(characters=1, items=1, longest=1), Terms())


async def test_one_engine_is_loaded_and_its_passes_mix_the_work_of_front_ends() -> None:
    engines = _Engines(engine := ArithmeticEngine())
    async with _fronts(engines) as (left, right):
        assert engines.opened == 1
        engine.gate.clear()
        first = left.start([1, 2])
        await _until_passes(engine, 1)
        answers = left.start([3, 4], [5, 6]), right.start([7, 8], [9, 10, 11])
        await _until_waiting([left, right])
        engine.gate.set()
        assert await first == [pytest.approx(logit_of([1, 2]))]
        assert await answers[0] == pytest.approx([logit_of([3, 4]), logit_of([5, 6])])
        assert await answers[1] == pytest.approx([logit_of([7, 8]), logit_of([9, 10, 11])])
        assert sorted(engine.batches[1]) == [[3, 4], [5, 6], [7, 8], [9, 10, 11]]
    assert engines.open_now == 0


async def test_equal_items_of_two_front_ends_are_computed_once() -> None:
    engines = _Engines(engine := ArithmeticEngine())
    async with _fronts(engines) as (left, right):
        engine.gate.clear()
        answers = [front.start([1, 2, 3]) for front in (left, right)]
        await _until_passes(engine, 1)
        await _until_waiting([left, right])
        engine.gate.set()
        assert [await answer for answer in answers] == [[pytest.approx(logit_of([1, 2, 3]))]] * 2
        assert engine.batches == [[[1, 2, 3]]]


async def test_a_light_key_does_not_wait_for_a_heavy_one_of_another_front_end() -> None:
    engines = _Engines(engine := ArithmeticEngine(tokens=64, pairs=8))
    async with _fronts(engines) as (left, right):
        engine.gate.clear()
        heavy = [left.start(*[[n, i] for i in range(50)], terms=Terms(caller="heavy")) for n in range(1, 5)]
        await _until_passes(engine, 1)
        await _until_waiting([left])
        light = right.start([1000, 1], terms=Terms(caller="light"))
        await _until_waiting([right])
        engine.gate.set()
        await light
        passes = next(number for number, batch in enumerate(engine.batches) if [1000, 1] in batch)
        assert passes <= 2, "the pass that ran, and one that was cut"
        await asyncio.gather(*heavy)


async def test_work_of_a_request_that_is_cancelled_is_dropped_and_what_ran_is_counted() -> None:
    engines = _Engines(engine := ArithmeticEngine(tokens=8, pairs=1))
    meter = RequestMeter(_Unlimited(), perf_counter)
    async with _fronts(engines) as (left, right):
        engine.gate.clear()
        cancelled = left.start([1, 2], [3, 4], [5, 6], [7, 8], terms=Terms(meter=meter))
        await _until_passes(engine, 1)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await _until_waiting([left])
        engine.gate.set()
        await right.run([9, 9])
        assert len(engine.batches) == 2
        assert engine.batches[1] == [[9, 9]]
        assert meter.spent >= 2, "the item of the pass that ran"


async def test_a_front_end_that_is_lost_leaves_nothing_behind() -> None:
    engines = _Engines(engine := ArithmeticEngine(tokens=8, pairs=1), max_waiting_tokens=100)
    async with _fronts(engines) as (left, right):
        engine.gate.clear()
        lost = left.start(*[[n, n] for n in range(1, 40)])
        await _until_passes(engine, 1)
        await _until_waiting([left])
        with pytest.raises(Overloaded):
            await right.run(*[[n, n] for n in range(1, 40)])
        left.channel.close()
        await asyncio.gather(lost, return_exceptions=True)
        await _until_waiting([right])
        engine.gate.set()
        assert await right.run([50, 50]) == [pytest.approx(logit_of([50, 50]))]
        assert len(engine.batches) <= 4


async def test_a_reservation_of_one_front_end_counts_for_the_others() -> None:
    engines = _Engines(ArithmeticEngine(), max_waiting_tokens=100)
    estimate = Estimate(characters=360, items=1, longest=512)
    async with _fronts(engines) as (left, right):
        async with left.intake.admit(estimate, Terms()):
            with pytest.raises(Overloaded, match="90 tokens wait already"):
                async with right.intake.admit(estimate, Terms()):
                    pass
        await _until_waiting([left])
        async with right.intake.admit(estimate, Terms()):
            pass


async def test_a_request_that_turns_out_larger_is_checked_again() -> None:
    engines = _Engines(ArithmeticEngine(), max_waiting_tokens=100)
    async with _fronts(engines) as (left, right):
        small, terms = Estimate(characters=4, items=1, longest=512), Terms(caller="a")
        async with (
            left.intake.admit(replace(small, characters=360), terms),
            right.intake.admit(small, terms) as ticket,
        ):
            ticket.correct(
                Tokenized(characters=4, items=1, tokens=50, work=Work(50, 2500.0), whole_characters=4, whole_tokens=50)
            )
            with pytest.raises(Overloaded):
                await ticket.run(_items([[*range(50)]]))


async def test_deadlines_are_kept_by_the_scheduler() -> None:
    engines = _Engines(engine := ArithmeticEngine())
    async with _fronts(engines) as (left, right):
        engine.gate.clear()
        first = left.start([1, 2])
        await _until_passes(engine, 1)
        with pytest.raises(DeadlineExceeded, match="1 of 1 texts"):
            await right.run([3, 4], terms=Terms(deadline=perf_counter() + 0.05))
        partial = Terms(deadline=perf_counter() + 0.05, partial=True)
        assert await right.run([5, 6], terms=partial) == []
        engine.gate.set()
        await first
        assert await right.intake.fits(Estimate(characters=4, items=1, longest=4), Terms(deadline=inf))


async def test_an_engine_that_cannot_be_loaded_says_why_and_is_tried_again() -> None:
    engines = _Engines(ArithmeticEngine())
    async with _fronts(engines) as (left, _):
        for _ in range(2):
            with pytest.raises(ConfigError, match="it is broken"):
                async with left.engines.open(_SPEC.model_copy(update={"name": "broken"}), wanted=False):
                    pass


async def test_a_front_end_hears_when_the_engine_was_last_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankd.serving.processes.scheduler._STATE_EVERY_S", 0.01)
    async with _fronts(_Engines(ArithmeticEngine())) as (left, _):
        await left.run([1, 2])
        ran = perf_counter()
        async with asyncio.timeout(20):
            while left.intake.alive_at() > ran:  # noqa: ASYNC110 - it is told every 10 ms
                await asyncio.sleep(0.005)


async def test_front_ends_share_the_quota_of_a_key() -> None:
    buckets = CentralBuckets()
    async with channels() as (left, of_left, _), channels() as (right, of_right, _):
        for end in (of_left, of_right):
            buckets.attend(end)
        rates = Rates(requests_per_s=2, tokens_per_min=100)
        allowances = [CentralRates(end).open("key", rates) for end in (left, right)]
        for allowance in allowances:
            await allowance.ask(now=perf_counter())
        with pytest.raises(RateLimited):
            await allowances[0].ask(now=perf_counter())
        meters = [RequestMeter(allowance, perf_counter) for allowance in allowances]
        await meters[0].reserve(99)
        await meters[1].reserve(50)
        with pytest.raises(RateLimited):
            await meters[0].reserve(10)
        meters[0].settle(1)
        meters[1].settle(50)
        await meters[1].reserve(10)


class _Unlimited:
    """Counts nothing."""

    limited = False

    async def reserve(self, tokens: int, *, by: object, now: float) -> None: ...

    async def ask(self, *, now: float) -> None: ...

    def spare_s(self, *, now: float) -> float:
        return 0.0

    def check_tokens(self, *, now: float) -> None: ...

    def take(self, tokens: int, *, by: object, now: float) -> None: ...

    def give_back(self, tokens: int) -> None: ...


async def test_a_lease_that_is_answered_as_its_caller_is_cancelled_is_given_back() -> None:
    engines = _Engines(ArithmeticEngine())
    settings = Settings()
    async with Scheduler.over(engines, settings, Silent()) as scheduler, channels() as (ours, theirs, _):
        session = scheduler.attend(theirs)
        leased = theirs.calls["open"]
        with SchedulerEngines.running(ours, settings) as remote, ExitStack() as stack:
            stack.callback(session.end)

            async def ask() -> None:
                async with remote.open(_SPEC, wanted=False):
                    raise AssertionError

            opening = asyncio.create_task(ask())

            async def lease(head: dict[str, Any], body: bytes) -> Reply:
                answer = leased(head, body)
                assert not isinstance(answer, tuple)
                told = await answer
                assert engines.open_now == 1
                asyncio.get_running_loop().call_soon(theirs.tell, "cancel", {})
                return told

            def cancel(_told: dict[str, Any]) -> None:
                opening.cancel()

            ours.notices["cancel"] = cancel
            theirs.calls["open"] = lease
            with pytest.raises(asyncio.CancelledError):
                await opening
            async with asyncio.timeout(20):
                while engines.open_now:  # noqa: ASYNC110 - its task ends in the next turns
                    await asyncio.sleep(0.001)


def test_cores_that_are_not_there_are_named() -> None:
    known = os.sched_getaffinity(0)
    check_cores([frozenset(known)])
    with pytest.raises(ConfigError, match=r"RERANKD_PROCESSES_CORES.* none of \[100000\]"):
        check_cores([frozenset(known), frozenset({100_000})])
