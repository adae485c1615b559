"""The shell around the planner: results reach their items, failures stay where they arose, and no request waits in
vain. Payloads and results are texts here: the batcher knows neither.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.batcher import Batcher
from rerankd.batching.passes import ThreadPasses
from rerankd.batching.planner import BatchPlanner
from rerankd.batching.ticket import Outcome
from rerankd.batching.work import Work
from rerankd.concurrency.worker import Worker
from rerankd.domain import Terms
from rerankd.engines.base import BatchLimits
from rerankd.errors import DeadlineExceeded, OutOfMemory, Overloaded, ScoringFailed, Unavailable
from rerankd.serving.faults import MortalWorker, kill_threads
from tests.fakes import NOT_A_NUMBER, POISON, RecordingObserver, running_batcher
from tests.unit.batching.texts import TextEngine, answers_to, length_of, served, text_items, until_a_pass_runs


def _rows(rng: random.Random, count: int) -> list[list[int]]:
    return [[rng.randrange(1000, 10**6) for _ in range(rng.randrange(1, 40))] for _ in range(count)]


def _right(outcome: Outcome[str], rows: Sequence[Sequence[int]]) -> bool:
    return outcome.results == answers_to(rows)


async def test_results_come_back_in_the_order_of_the_items() -> None:
    observer = RecordingObserver()
    rows = [[5] * 3, [6], [7] * 9, [8] * 2]
    async with running_batcher(TextEngine(pairs=2), observer) as batcher:
        outcome = await served(batcher, text_items(*rows))
    assert _right(outcome, rows)
    assert outcome.finished is None
    assert outcome.queue_s >= 0
    assert outcome.inference_s > 0
    assert observer.total("batch_scored", "pairs") == 4
    assert observer.total("batch_scored", "tokens") == 15
    assert observer.named("queue_changed")[-1]["waiting_tokens"] == 0


async def test_an_idle_engine_gets_work_at_once_and_what_arrives_meanwhile_gathers() -> None:
    engine = TextEngine()
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        first = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        others = [asyncio.ensure_future(served(batcher, text_items([number]))) for number in (2, 3, 4)]
        await asyncio.sleep(0.01)
        assert engine.batches == [[[1]]]
        engine.gate.set()
        await asyncio.gather(first, *others)
    assert [len(batch) for batch in engine.batches] == [1, 3]


# Passes until the batcher trusts what it has learnt of their length, and some more.
_LEARNING = 24


class _SteadyEngine(TextEngine):
    """A pass takes as long as its tokens; it remembers when each began."""

    token_s = 0.0025

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.begun: list[float] = []

    def run(self, texts: Sequence[str]) -> list[str]:
        self.begun.append(perf_counter())
        time.sleep(self.token_s * sum(map(length_of, texts)))
        return super().run(texts)


async def _learn(batcher: Batcher[str, str]) -> None:
    """Let the batcher learn how long passes take."""
    for number in range(_LEARNING):
        await served(batcher, text_items([number] * 8))


@pytest.mark.timed
async def test_a_thread_finds_its_next_batch_also_while_the_event_loop_is_busy() -> None:
    engine = _SteadyEngine(pairs=1)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        await _learn(batcher)
        working = asyncio.ensure_future(served(batcher, text_items([7] * 80, [8] * 80)))
        while len(engine.begun) <= _LEARNING:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.95 * 80 * engine.token_s)
        time.sleep(0.5 * 80 * engine.token_s)  # noqa: ASYNC251 - that is what the test is about
        free_again = perf_counter()
        await working
    assert engine.begun[_LEARNING + 1] < free_again


@pytest.mark.timed
async def test_what_arrives_before_a_pass_is_nearly_over_shares_the_next_one() -> None:
    engine = _SteadyEngine()
    async with running_batcher(engine, RecordingObserver()) as batcher:
        await _learn(batcher)
        working = [asyncio.ensure_future(served(batcher, text_items([7] * 80)))]
        for number in range(3):
            await asyncio.sleep(0.2 * 80 * engine.token_s)
            working.append(asyncio.ensure_future(served(batcher, text_items([10 + number] * 8))))
        await asyncio.gather(*working)
    assert [len(batch) for batch in engine.batches[-2:]] == [1, 3]


async def test_as_many_passes_run_as_the_engine_has_workers() -> None:
    engine = TextEngine(workers=3, pairs=1)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        working = asyncio.ensure_future(served(batcher, text_items([1], [2], [3], [4])))
        await until_a_pass_runs(engine, passes=3)
        await asyncio.sleep(0.01)
        assert len(engine.batches) == 3
        engine.gate.set()
        await working


@pytest.mark.parametrize(("rounded_length", "alone"), [(int, 9), (lambda length: -(-length // 8) * 8, 16)])
async def test_what_the_engine_computes_as_equally_long_shares_a_batch(
    rounded_length: Callable[[int], int], alone: int
) -> None:
    engine, observer = TextEngine(tokens=48), RecordingObserver()
    engine.preferred_batch = replace(engine.preferred_batch, rounded_length=rounded_length)
    async with running_batcher(engine, observer) as batcher:
        engine.gate.clear()
        first = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        others = [
            asyncio.ensure_future(served(batcher, text_items([2] * 16, [3] * 9))),
            asyncio.ensure_future(served(batcher, text_items([4] * 16, [5] * 16))),
        ]
        await asyncio.sleep(0.01)
        engine.gate.set()
        await asyncio.gather(first, *others)
    lengths = [sorted(map(len, batch)) for batch in engine.batches[1:]]
    assert lengths == ([[16, 16, 16], [9]] if rounded_length is int else [[9, 16, 16], [16]])
    assert [fact["padded_tokens"] for fact in observer.named("batch_scored")][1:] == [48, alone]


@pytest.mark.parametrize("place", [0, 1, 4, 7])
async def test_only_the_request_with_the_poisoned_item_fails(place: int, caplog: pytest.LogCaptureFixture) -> None:
    engine, observer = TextEngine(), RecordingObserver()
    rows = [[number, number + 1] for number in range(10, 18)]
    rows[place][1] = POISON
    async with running_batcher(engine, observer) as batcher:
        engine.gate.clear()
        holding = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        calls = [asyncio.ensure_future(served(batcher, text_items(row))) for row in rows]
        await asyncio.sleep(0)
        engine.gate.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await holding
        after = await served(batcher, text_items([9]))
    assert len(engine.batches[1]) == 8, "all of them shared a batch"
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if number == place:
            assert isinstance(answer, ScoringFailed)
            assert "operator" not in str(answer), "the cause is for the log"
        else:
            assert isinstance(answer, Outcome)
            assert _right(answer, [row])
    assert _right(after, [[9]])
    assert observer.named("batch_failed")[0]["pairs"] == 8
    assert "an operator of the graph failed" in caplog.text


async def test_a_request_that_failed_takes_the_rest_of_its_work_along() -> None:
    engine, observer = TextEngine(pairs=1), RecordingObserver()
    async with running_batcher(engine, observer) as batcher:
        with pytest.raises(ScoringFailed):
            await served(batcher, text_items([POISON] * 9, *[[number] for number in range(5)]))
        assert _right(await served(batcher, text_items([3])), [[3]])
    assert len(engine.batches) <= 3
    assert observer.named("queue_changed")[-1]["waiting_tokens"] == 0


async def test_a_score_that_is_no_number_is_passed_on() -> None:
    async with running_batcher(TextEngine(), RecordingObserver()) as batcher:
        outcome = await served(batcher, text_items([NOT_A_NUMBER], [2]))
    assert outcome.results == ["nan", *answers_to([[2]])]


class _MiscountingEngine:
    """Gives one result too many for batches of two."""

    name = "miscounting"
    workers = 1
    preferred_batch = BatchLimits(tokens=512, pairs=64)

    def run(self, texts: Sequence[str]) -> list[str]:
        return [*texts, "more"] if len(texts) == 2 else list(texts)


async def test_an_engine_that_gives_the_wrong_number_of_results_is_a_failed_batch_not_the_end() -> None:
    observer = RecordingObserver()
    planner = BatchPlanner(max_batch_tokens=512, max_batch_pairs=64)
    with Worker(name="infer", threads=1) as worker:
        passes = ThreadPasses(_MiscountingEngine().run, worker)
        batcher = Batcher(planner, passes, max_waiting_tokens=1000, model="fake", observer=observer)
        serving = asyncio.create_task(batcher.run())
        outcome = await served(batcher, text_items([1], [2]))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert outcome.results == ["1", "2"]
    assert len(observer.named("batch_failed")) == 1


async def test_a_cancelled_request_drops_what_waits_and_says_how_much() -> None:
    engine, observer = TextEngine(pairs=1), RecordingObserver()
    async with running_batcher(engine, observer) as batcher:
        engine.gate.clear()
        call = asyncio.ensure_future(served(batcher, text_items([1] * 30, [2] * 20, [3] * 10)))
        await until_a_pass_runs(engine)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        engine.gate.set()
        assert _right(await served(batcher, text_items([4])), [[4]])
    assert observer.named("work_cancelled") == [{"model": "fake", "tokens": 30}]
    assert engine.batches == [[[1] * 30], [[4]]]


async def test_a_request_cancelled_between_cut_and_pass_costs_no_pass() -> None:
    engine = TextEngine()
    async with running_batcher(engine, RecordingObserver()) as batcher:
        call = asyncio.ensure_future(served(batcher, text_items([1])))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert _right(await served(batcher, text_items([2])), [[2]])
    assert len(engine.batches) <= 2


async def test_too_much_work_is_refused_with_the_time_until_there_is_room() -> None:
    engine, observer = TextEngine(pairs=1, seconds_per_token=0.0005), RecordingObserver()
    async with running_batcher(engine, observer, max_waiting_tokens=500) as batcher:
        await served(batcher, text_items([1] * 100))
        engine.gate.clear()
        running = asyncio.ensure_future(served(batcher, text_items([2] * 100)))
        await until_a_pass_runs(engine, passes=2)
        waiting = asyncio.ensure_future(served(batcher, text_items([3] * 400)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await served(batcher, text_items([4] * 300))
        engine.gate.set()
        await asyncio.gather(running, waiting)
    assert 0.5 * 0.1 < refused.value.retry_after_s < 4 * 0.1, "200 tokens too many at about 2,000 a second"
    assert observer.named("request_shed") == [{"model": "fake", "reason": "overloaded"}]


async def test_work_that_was_not_done_teaches_no_speed() -> None:
    """A batch that was abandoned takes microseconds; Retry-After would forget how slow the engine is."""
    engine = TextEngine(pairs=1, seconds_per_token=0.001)
    async with running_batcher(engine, RecordingObserver(), max_waiting_tokens=100) as batcher:
        await served(batcher, text_items([1] * 20))
        for _ in range(20):
            call = asyncio.ensure_future(served(batcher, text_items([2] * 90)))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        engine.gate.clear()
        passes = len(engine.batches)
        running = asyncio.ensure_future(served(batcher, text_items([3])))
        await until_a_pass_runs(engine, passes=passes + 1)
        waiting = asyncio.ensure_future(served(batcher, text_items([3] * 100)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await served(batcher, text_items([4] * 50))
        engine.gate.set()
        await asyncio.gather(running, waiting)
    assert refused.value.retry_after_s > 0.03


async def test_before_any_speed_is_known_a_second_is_proposed() -> None:
    engine = TextEngine()
    async with running_batcher(engine, RecordingObserver(), max_waiting_tokens=5) as batcher:
        engine.gate.clear()
        running = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        waiting = asyncio.ensure_future(served(batcher, text_items([1] * 5)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await served(batcher, text_items([2]))
        engine.gate.set()
        await asyncio.gather(running, waiting)
    assert refused.value.retry_after_s == 1.0


async def test_urgent_work_goes_first_and_is_never_refused() -> None:
    engine = TextEngine(pairs=1)
    async with running_batcher(engine, RecordingObserver(), max_waiting_tokens=10) as batcher:
        engine.gate.clear()
        calls = [asyncio.ensure_future(served(batcher, text_items([1])))]
        await until_a_pass_runs(engine)
        calls.append(asyncio.ensure_future(served(batcher, text_items([2] * 10))))
        await asyncio.sleep(0)
        calls.append(asyncio.ensure_future(served(batcher, text_items([3] * 5), Terms(urgent=True))))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(*calls)
    assert [batch[0][0] for batch in engine.batches] == [1, 3, 2]


async def test_background_work_fills_idle_passes_and_counts_for_nobody() -> None:
    background = Terms(caller="a", background=True, deadline=perf_counter() + 60)
    engine, observer = TextEngine(pairs=1), RecordingObserver()
    async with running_batcher(engine, observer, max_waiting_tokens=10) as batcher:
        engine.gate.clear()
        calls = [asyncio.ensure_future(served(batcher, text_items([1], [2], [3] * 50), background))]
        await until_a_pass_runs(engine)
        # larger than what may wait, if the background's tokens counted
        calls.append(asyncio.ensure_future(served(batcher, text_items([4] * 5, [5] * 5), Terms(caller="a"))))
        await asyncio.sleep(0)
        assert observer.named("queue_changed")[-1]["waiting_tokens"] == 10
        engine.gate.set()
        await asyncio.gather(*calls)
    assert {batch[0][0] for batch in engine.batches[1:3]} == {4, 5}
    assert observer.named("request_shed") == []


async def test_a_request_takes_what_it_shares_with_background_work_out_of_it() -> None:
    background = Terms(background=True, deadline=perf_counter() + 60)
    engine = TextEngine(pairs=1)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        calls = [asyncio.ensure_future(served(batcher, text_items([1], [2], [3]), background))]
        await until_a_pass_runs(engine)
        calls.append(asyncio.ensure_future(served(batcher, text_items([2]))))
        await asyncio.sleep(0)
        engine.gate.set()
        first, second = await asyncio.gather(*calls)
    assert _right(first, [[1], [2], [3]])
    assert _right(second, [[2]])
    assert len(engine.batches) == 3


async def test_equal_items_that_wait_are_computed_once() -> None:
    engine, observer = TextEngine(pairs=1), RecordingObserver()
    async with running_batcher(engine, observer) as batcher:
        engine.gate.clear()
        calls = [asyncio.ensure_future(served(batcher, text_items([1])))]
        await until_a_pass_runs(engine)
        calls += [asyncio.ensure_future(served(batcher, text_items([2, 2], [3], [2, 2]))) for _ in range(4)]
        await asyncio.sleep(0.01)
        engine.gate.set()
        first, *others = await asyncio.gather(*calls)
    assert _right(first, [[1]])
    assert all(_right(outcome, [[2, 2], [3], [2, 2]]) for outcome in others)
    assert sorted(batch[0] for batch in engine.batches) == [[1], [2, 2], [3]]
    assert observer.total("pairs_coalesced", "pairs") == 4 * 3 - 2
    assert observer.named("queue_changed")[-1]["waiting_tokens"] == 0


async def test_an_item_whose_pass_runs_is_waited_for_and_not_computed_again() -> None:
    engine, observer = TextEngine(), RecordingObserver()
    async with running_batcher(engine, observer) as batcher:
        engine.gate.clear()
        first = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        second = asyncio.ensure_future(served(batcher, text_items([1])))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        assert _right(await second, [[1]])
    assert engine.batches == [[[1]]]
    assert observer.total("pairs_coalesced", "pairs") == 1


async def test_a_request_that_shares_an_item_gets_its_result_when_the_others_leave() -> None:
    engine = TextEngine(pairs=1)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        running = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        leaving = asyncio.ensure_future(served(batcher, text_items([2], [3])))
        staying = asyncio.ensure_future(served(batcher, text_items([3], [4])))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        assert _right(await staying, [[3], [4]])
        await running
    assert sorted(batch[0] for batch in engine.batches) == [[1], [3], [4]]


@pytest.mark.parametrize("turns", [0, 1, 3, 20])
async def test_a_request_gets_what_a_large_one_just_gave_up(turns: int) -> None:
    """The traces of a large request go in chunks; a request that comes in between must not be lost among them."""
    engine, rows = TextEngine(pairs=100), [[number, 1] for number in range(10_000, 12_000)]
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        leaving = asyncio.ensure_future(served(batcher, text_items(*rows)))
        await until_a_pass_runs(engine)
        await asyncio.sleep(0.05)
        leaving.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        coming = asyncio.ensure_future(served(batcher, text_items(*rows)))
        await asyncio.sleep(0)
        engine.gate.set()
        assert _right(await coming, rows)
        passes = len(engine.batches)
        assert _right(await served(batcher, text_items(*rows[:150])), rows[:150])
    assert len(engine.batches) == passes + 2, "what was scored is open no longer"
    assert max(map(len, engine.batches)) <= 100


@pytest.mark.parametrize("given_up", [False, True])
async def test_the_list_of_a_request_is_emptied_once_it_is_over(given_up: bool) -> None:
    rows = [[number] for number in range(10_000, 11_000)]
    items = text_items(*rows)
    engine = TextEngine(pairs=100)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        asking = asyncio.ensure_future(served(batcher, items))
        await until_a_pass_runs(engine)
        if given_up:
            asking.cancel()
        engine.gate.set()
        await asyncio.wait([asking])
        assert asking.cancelled() or _right(asking.result(), rows)
        async with asyncio.timeout(5):
            while items:  # noqa: ASYNC110 - nothing says when
                await asyncio.sleep(0)


async def test_all_requests_with_a_poisoned_item_fail() -> None:
    engine = TextEngine(pairs=1)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        answers = await asyncio.gather(
            *(served(batcher, text_items([POISON])) for _ in range(3)), return_exceptions=True
        )
    assert [type(answer) for answer in answers] == [ScoringFailed] * 3


async def test_a_deadline_that_comes_is_an_error_and_drops_what_waits() -> None:
    engine, observer = TextEngine(pairs=1), RecordingObserver()
    async with running_batcher(engine, observer) as batcher:
        engine.gate.clear()
        with pytest.raises(DeadlineExceeded, match="2 of 2 texts were not scored"):
            await served(batcher, text_items([1], [2] * 7), Terms(deadline=perf_counter() + 0.05))
        engine.gate.set()
    assert observer.named("deadline_missed") == [{"model": "fake"}]
    assert observer.total("work_cancelled", "tokens") == 1


class _HeldUpByOneToken(TextEngine):
    """Only a batch that begins with a sequence of one token waits at the gate."""

    def run(self, texts: Sequence[str]) -> list[str]:
        if length_of(texts[0]) > 1:
            return answers_to([[int(word) for word in text.split()] for text in texts])
        return super().run(texts)


async def test_a_partial_answer_has_what_is_scored_by_the_deadline() -> None:
    engine = _HeldUpByOneToken(pairs=1)
    engine.gate.clear()
    async with running_batcher(engine, RecordingObserver()) as batcher:
        outcome = await served(batcher, text_items([1], [2] * 7), Terms(deadline=perf_counter() + 0.5, partial=True))
        engine.gate.set()
    assert outcome.finished == [1]
    assert outcome.results == answers_to([[2] * 7])


async def test_a_partial_answer_may_have_nothing() -> None:
    engine = TextEngine()
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        outcome = await served(batcher, text_items([1]), Terms(deadline=perf_counter() + 0.02, partial=True))
        engine.gate.set()
    assert outcome.finished == []
    assert outcome.results == []


@pytest.mark.timed
async def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_says_when_it_could() -> None:
    engine, observer = TextEngine(pairs=1, seconds_per_token=0.001), RecordingObserver()
    async with running_batcher(engine, observer) as batcher:
        for _ in range(20):
            await served(batcher, text_items([1] * 10))
        passes = len(engine.batches)
        waiting = asyncio.ensure_future(served(batcher, text_items([2] * 400), Terms(deadline=perf_counter() + 60)))
        await until_a_pass_runs(engine, passes=passes + 1)
        started = perf_counter()
        with pytest.raises(Overloaded, match="after its deadline") as later:
            await served(batcher, text_items([3] * 100), Terms(deadline=started + 0.2))
        with pytest.raises(DeadlineExceeded, match="needs about"):
            await served(batcher, text_items([3] * 1000), Terms(deadline=started + 0.2))
        assert not waiting.done()
        await waiting
        await served(batcher, text_items([3] * 100), Terms(deadline=perf_counter() + 1.0))
    assert 0.05 < later.value.retry_after_s < 0.8
    assert [fact["reason"] for fact in observer.named("request_shed")] == ["overloaded", "deadline_exceeded"]


async def test_a_request_whose_texts_are_being_tokenized_counts_already() -> None:
    estimate = Estimate(characters=320, items=2, longest=512)
    async with (
        running_batcher(TextEngine(), RecordingObserver(), max_waiting_tokens=100) as batcher,
        batcher.admit(estimate, Terms()) as ticket,
    ):
        with pytest.raises(Overloaded):
            await batcher.admit(estimate, Terms()).__aenter__()
        assert _right(await ticket.run(text_items([1])), [[1]])
        async with batcher.admit(estimate, Terms()):
            pass


def _tokenized(*, characters: int, tokens: int, whole: bool = True) -> Tokenized:
    return Tokenized(
        characters=characters,
        items=1,
        tokens=tokens,
        work=Work(tokens, tokens * tokens),
        whole_characters=characters if whole else 0,
        whole_tokens=tokens if whole else 0,
    )


async def test_texts_that_were_cut_teach_nothing_about_their_length() -> None:
    async with running_batcher(TextEngine(), RecordingObserver()) as batcher:
        before = batcher.lengths.forecast(Estimate(characters=1000, items=1, longest=512)).work
        async with batcher.admit(Estimate(characters=1_000_000, items=1, longest=8), Terms()) as ticket:
            ticket.correct(_tokenized(characters=1_000_000, tokens=8, whole=False))
            await ticket.run(text_items([1] * 8))
        assert batcher.lengths.forecast(Estimate(characters=1000, items=1, longest=512)).work == before


async def test_nothing_is_left_reserved_so_that_a_large_request_finds_nothing_waiting() -> None:
    async with running_batcher(TextEngine(), RecordingObserver(), max_waiting_tokens=10) as batcher:
        for characters in (41, 73, 999, 1234):
            async with batcher.admit(Estimate(characters=characters, items=9, longest=512), Terms()) as ticket:
                ticket.correct(_tokenized(characters=characters // 2, tokens=7))
                await ticket.run(text_items([1] * 7))
        assert batcher.admission.reserved_tokens == 0
        async with batcher.admit(Estimate(characters=10_000, items=9, longest=512), Terms()):
            pass


async def test_how_many_tokens_a_character_is_gets_learnt_for_each_caller() -> None:
    async with running_batcher(TextEngine(), RecordingObserver(), max_waiting_tokens=1000) as batcher:
        for _ in range(100):
            async with batcher.admit(Estimate(characters=1000, items=1, longest=512), Terms(caller="a")) as ticket:
                ticket.correct(_tokenized(characters=1000, tokens=50))
        tokens = [
            batcher.lengths.forecast(Estimate(characters=1000, items=1, longest=512), caller=name).work.tokens
            for name in ("a", "b")
        ]
        assert tokens[0] == pytest.approx(50, rel=0.1)
        assert tokens[1] == 250


async def test_a_request_that_turns_out_to_be_too_large_is_refused_when_a_part_of_it_is_tokenized() -> None:
    observer = RecordingObserver()
    async with (
        running_batcher(TextEngine(), observer, max_waiting_tokens=100) as batcher,
        batcher.admit(Estimate(characters=200, items=2, longest=512), Terms()),
    ):
        with pytest.raises(Overloaded, match="about 200 and the limit is 100"):
            async with batcher.admit(Estimate(characters=160, items=4, longest=512), Terms()) as ticket:
                ticket.correct(_tokenized(characters=40, tokens=50))
        assert batcher.admission.reserved_tokens == 50, "and takes no room then"
    assert [fact["reason"] for fact in observer.named("request_shed")] == ["overloaded"]


async def test_a_request_that_turns_out_to_be_smaller_makes_room_for_others() -> None:
    async with (
        running_batcher(TextEngine(), RecordingObserver(), max_waiting_tokens=100) as batcher,
        batcher.admit(Estimate(characters=400, items=2, longest=512), Terms()) as ticket,
    ):
        ticket.correct(_tokenized(characters=200, tokens=5))
        assert batcher.admission.reserved_tokens == 10
        async with batcher.admit(Estimate(characters=360, items=1, longest=512), Terms()):
            pass


async def test_a_ticket_serves_one_round_after_another_and_is_not_checked_again() -> None:
    engine = TextEngine()
    async with (
        running_batcher(engine, RecordingObserver(), max_waiting_tokens=100) as batcher,
        batcher.admit(Estimate(characters=4, items=1, longest=512), Terms()) as ticket,
    ):
        assert _right(await ticket.run(text_items([1])), [[1]])
        ticket.correct(_tokenized(characters=4000, tokens=1000))
        assert batcher.admission.reserved_tokens == 0
        assert _right(await ticket.run(text_items([2, 3], [4])), [[2, 3], [4]])


async def test_only_items_of_one_group_share_a_pass() -> None:
    engine = TextEngine()
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        first = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        groups = ("a", "b", "a", None)
        rows = [[10 + number] * 4 for number in range(len(groups))]
        mixed = [item._replace(group=group) for item, group in zip(text_items(*rows), groups, strict=True)]
        others = [asyncio.ensure_future(served(batcher, mixed)), asyncio.ensure_future(served(batcher, [mixed[1]]))]
        await asyncio.sleep(0.01)
        engine.gate.set()
        await first
        assert _right(await others[0], rows)
        await others[1]
    assert sorted(map(sorted, engine.batches[1:])) == [[rows[0], rows[2]], [rows[1]], [rows[3]]]


class _HangingEngine(TextEngine):
    """Never comes back from a batch with the id `POISON`, until the gate opens."""

    def run(self, texts: Sequence[str]) -> list[str]:
        if any(str(POISON) in text.split() for text in texts):
            self.gate.wait(timeout=30)
        return super().run(texts)


class _FailingOnceEngine(TextEngine):
    """Fails in its first pass, whatever is in it."""

    failed = False

    def run(self, texts: Sequence[str]) -> list[str]:
        if not self.failed:
            self.failed = True
            raise RuntimeError("a passing weakness")
        return super().run(texts)


async def test_an_item_that_was_alone_when_its_worker_failed_is_tried_once_more() -> None:
    observer = RecordingObserver()
    async with running_batcher(_FailingOnceEngine(), observer) as batcher:
        assert _right(await served(batcher, text_items([1])), [[1]])
    assert len(observer.named("batch_failed")) == 1


async def test_a_worker_that_dies_with_its_call_is_replaced_and_the_call_is_made_again() -> None:
    observer = RecordingObserver()
    async with running_batcher(TextEngine(), observer, stuck_after_s=0.2, worker_class=MortalWorker) as batcher:
        for number in range(20):
            await served(batcher, text_items([number]))
        kill_threads()
        assert _right(await served(batcher, text_items([1], [2])), [[1], [2]])
        assert _right(await served(batcher, text_items([3])), [[3]])


async def test_a_worker_that_hangs_is_replaced_and_the_others_of_its_batch_are_answered() -> None:
    engine, observer = _HangingEngine(), RecordingObserver()
    engine.gate.set()
    async with running_batcher(engine, observer, stuck_after_s=0.1) as batcher:
        for _ in range(20):
            await served(batcher, text_items([1]))
        engine.gate.clear()
        poisoned = asyncio.ensure_future(served(batcher, text_items([POISON])))
        harmless = [asyncio.ensure_future(served(batcher, text_items([number]))) for number in (2, 3)]
        with pytest.raises(ScoringFailed):
            await poisoned
        engine.gate.set()
        for number, call in zip((2, 3), harmless, strict=True):
            assert _right(await call, [[number]])
    assert observer.named("thread_given_up")


async def test_an_engine_is_alive_while_its_passes_take_no_longer_than_they_may() -> None:
    engine = TextEngine(seconds_per_pass=0.001)
    async with running_batcher(engine, RecordingObserver(), stuck_after_s=60) as batcher:
        assert batcher.alive_at() < 0, "nothing has run yet"
        await _learn(batcher)
        ended = batcher.alive_at()
        assert ended <= perf_counter()
        assert batcher.alive_at() == ended, "an idle engine shows nothing new"
        engine.gate.clear()
        call = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine, _LEARNING + 1)
        async with asyncio.timeout(20):
            while batcher.alive_at() > ended:  # noqa: ASYNC110 - time has to go by
                await asyncio.sleep(0.001)
        engine.gate.set()
        await call
        assert batcher.alive_at() > ended


async def test_a_long_first_pass_is_no_sign_of_death() -> None:
    engine = TextEngine()
    async with running_batcher(engine, RecordingObserver(), stuck_after_s=60) as batcher:
        engine.gate.clear()
        call = asyncio.ensure_future(served(batcher, text_items([1])))
        await until_a_pass_runs(engine)
        before = perf_counter()
        assert batcher.alive_at() >= before
        engine.gate.set()
        await call


async def test_a_first_pass_has_longer_but_is_not_waited_for_without_end() -> None:
    engine = _HangingEngine()
    async with running_batcher(engine, RecordingObserver(), stuck_after_s=0.01) as batcher:
        with pytest.raises(ScoringFailed):
            await served(batcher, text_items([POISON]))
        engine.gate.set()
        assert _right(await served(batcher, text_items([1])), [[1]])


class _SmallEngine(TextEngine):
    """Has memory for 100 padded tokens."""

    def run(self, texts: Sequence[str]) -> list[str]:
        if len(texts) * max(map(length_of, texts)) > 100:
            raise OutOfMemory("100 tokens and no more")
        return super().run(texts)


async def test_out_of_memory_is_retried_in_smaller_batches_and_not_met_again() -> None:
    engine, observer = _SmallEngine(tokens=400, pairs=400), RecordingObserver()
    rows = [[number] * 10 for number in range(40)]
    async with running_batcher(engine, observer) as batcher:
        assert _right(await served(batcher, text_items(*rows)), rows)
        failures = len(observer.named("batch_failed"))
        others = [[number] * 10 for number in range(100, 140)]
        assert _right(await served(batcher, text_items(*others)), others)
        assert len(observer.named("batch_failed")) == failures
        with pytest.raises(ScoringFailed):
            await served(batcher, text_items([5] * 101))
    assert 1 <= failures <= 3


async def test_memory_that_is_free_again_is_used_again() -> None:
    engine = _SmallEngine(tokens=120, pairs=400)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        rows = [[number] * 10 for number in range(12)]
        assert _right(await served(batcher, text_items(*rows)), rows)
        for _ in range(1000):
            await served(batcher, text_items([7]))
        seen = len(engine.batches)
        rows = [[number] * 10 for number in range(100, 112)]
        assert _right(await served(batcher, text_items(*rows)), rows)
    assert len(engine.batches[seen]) == 9, "90 of the 120 tokens, up from 60"


async def test_requests_that_wait_fail_when_the_model_is_stopped() -> None:
    engine = TextEngine(pairs=1)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        calls = [asyncio.ensure_future(served(batcher, text_items([1], [2]))) for _ in range(3)]
        await until_a_pass_runs(engine)
    for call in calls:
        with pytest.raises(Unavailable, match="being stopped"):
            await call
    with pytest.raises(Unavailable, match="being stopped"):
        await served(batcher, text_items([1]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 3), pairs=st.integers(1, 20), poisoned=st.booleans())
def test_results_are_never_mixed(seed: int, workers: int, pairs: int, poisoned: bool) -> None:
    asyncio.run(_stress(random.Random(seed), TextEngine(workers=workers, pairs=pairs), poisoned=poisoned))


async def _stress(rng: random.Random, engine: TextEngine, *, poisoned: bool) -> None:
    observer = RecordingObserver()

    async def client() -> None:
        for _ in range(rng.randrange(1, 5)):
            rows = _rows(rng, rng.randrange(1, 12))
            bad = poisoned and rng.random() < 0.2
            if bad:
                rng.choice(rows)[0] = POISON
            call = asyncio.ensure_future(served(batcher, text_items(*rows), Terms(urgent=rng.random() < 0.1)))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() / 200)
                call.cancel()
            try:
                outcome = await call
                assert not bad
                assert _right(outcome, rows)
            except ScoringFailed:
                assert bad
            except asyncio.CancelledError:
                assert call.cancelled()

    async with running_batcher(engine, observer) as batcher:
        await asyncio.gather(*(client() for _ in range(12)))
        assert observer.named("queue_changed")[-1]["waiting_tokens"] == 0
        assert _right(await served(batcher, text_items([1], [2, 3])), [[1], [2, 3]])
