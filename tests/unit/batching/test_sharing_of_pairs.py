"""Equal pairs of different callers are scored once, whichever of them goes away or stands back."""

import asyncio

from rerankd.domain import LAST_PRIORITY, Terms, Unmetered
from tests.fakes import RecordingObserver, running_batcher
from tests.unit.batching.texts import TextEngine, answers_to, served, text_items, until_a_pass_runs


class _Counting(Unmetered):
    """A meter that remembers what went to the engine."""

    limited = True

    def __init__(self) -> None:
        self.computed = 0

    def compute(self, tokens: int) -> None:
        self.computed += tokens


_SHARED = [[7] * 4, [8] * 4]
_BLOCKER = [[1] * 4]


async def test_a_pair_that_waits_for_two_callers_is_scored_when_one_of_them_goes_away() -> None:
    engine = TextEngine(pairs=1)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        blocker = asyncio.ensure_future(served(batcher, text_items(*_BLOCKER)))
        await until_a_pass_runs(engine)
        gone = asyncio.ensure_future(served(batcher, text_items(*_SHARED), Terms(caller="a")))
        stays = asyncio.ensure_future(served(batcher, text_items(*_SHARED), Terms(caller="b")))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        engine.gate.set()
        outcome = await asyncio.wait_for(stays, timeout=10)
        await blocker
    assert outcome.results == answers_to(_SHARED)


async def test_a_pair_whose_pass_runs_is_given_to_the_other_caller_when_the_first_goes_away() -> None:
    engine = TextEngine(pairs=2)
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        gone = asyncio.ensure_future(served(batcher, text_items(*_SHARED), Terms(caller="a")))
        await until_a_pass_runs(engine)
        stays = asyncio.ensure_future(served(batcher, text_items(*_SHARED), Terms(caller="b")))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        engine.gate.set()
        outcome = await asyncio.wait_for(stays, timeout=10)
    assert outcome.results == answers_to(_SHARED)
    assert len(engine.batches) == 1


async def test_a_caller_does_not_wait_for_anothers_low_priority() -> None:
    """The pairs are the last of a hundred that wait for the first caller, and the first of the second one."""
    engine = TextEngine(pairs=1)
    many = [[1000 + number] * 4 for number in range(100)]
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        blocker = asyncio.ensure_future(served(batcher, text_items(*_BLOCKER)))
        await until_a_pass_runs(engine)
        late = Terms(caller="a", priority=LAST_PRIORITY)
        slow = asyncio.ensure_future(served(batcher, text_items(*many, *_SHARED), late))
        await asyncio.sleep(0.01)
        quick = asyncio.ensure_future(served(batcher, text_items(*_SHARED), Terms(caller="b")))
        await asyncio.sleep(0.01)
        engine.gate.set()
        await asyncio.wait_for(quick, timeout=10)
        passes = len(engine.batches)
        await asyncio.gather(slow, blocker)
    assert passes <= 10
    assert sum(batch[0] in _SHARED for batch in engine.batches) == len(_SHARED), "and they are scored once"


async def test_each_caller_pays_for_a_pair_that_both_get_and_nobody_for_one_that_was_dropped() -> None:
    engine = TextEngine(pairs=1)
    first, second, gone = _Counting(), _Counting(), _Counting()
    async with running_batcher(engine, RecordingObserver()) as batcher:
        engine.gate.clear()
        blocker = asyncio.ensure_future(served(batcher, text_items(*_BLOCKER)))
        await until_a_pass_runs(engine)
        asking = [
            asyncio.ensure_future(served(batcher, text_items(*_SHARED), Terms(caller=name, meter=meter)))
            for name, meter in (("a", first), ("b", second))
        ]
        dropped = asyncio.ensure_future(served(batcher, text_items([9] * 50), Terms(caller="c", meter=gone)))
        await asyncio.sleep(0.01)
        dropped.cancel()
        await asyncio.sleep(0.01)
        engine.gate.set()
        await asyncio.gather(*asking, blocker)
    assert first.computed == second.computed == 8
    assert gone.computed == 0
