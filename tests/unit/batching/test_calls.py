"""Passes that ask a remote model: awaited, cancelled when nobody wants them, and failed as a whole."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import pytest

from rerankd.batching.batcher import Batcher
from rerankd.batching.passes import CallPasses
from rerankd.batching.planner import BatchPlanner
from rerankd.domain import Terms
from rerankd.errors import DeadlineExceeded, RemoteFailed
from tests.fakes import RecordingObserver
from tests.unit.batching.texts import answers_to, served, text_items


class Remote:
    """Answers once the gate is open. Remembers what it was asked, until when, and which calls were cancelled."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked: list[list[str]] = []
        self.deadlines: list[float] = []
        self.cancelled: list[list[str]] = []
        self.failure: Exception | None = None

    async def ask(self, texts: Sequence[str], deadline: float) -> list[str]:
        self.asked.append(list(texts))
        self.deadlines.append(deadline)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(list(texts))
            raise
        if self.failure is not None:
            raise self.failure
        return [answers_to([[int(word) for word in text.split()]])[0] for text in texts]

    async def until_asked(self, times: int = 1) -> None:
        while len(self.asked) < times:  # noqa: ASYNC110 - calls are counted
            await asyncio.sleep(0)


@asynccontextmanager
async def calling(
    remote: Remote, *, limit: int = 2, pairs: int = 64, observer: RecordingObserver | None = None
) -> AsyncIterator[Batcher[str, str]]:
    batcher = Batcher(
        BatchPlanner(max_batch_tokens=2**40, max_batch_pairs=pairs, workers=limit, padded=False),
        CallPasses(remote.ask, limit=limit),
        max_waiting_tokens=1_000_000,
        model="remote",
        observer=observer or RecordingObserver(),
    )
    serving = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_call_that_nobody_wants_is_cancelled_and_its_place_is_free() -> None:
    remote = Remote()
    async with calling(remote, limit=1) as batcher:
        request = asyncio.create_task(served(batcher, text_items([1], [2])))
        await remote.until_asked()
        request.cancel()
        other = asyncio.create_task(served(batcher, text_items([3])))
        await remote.until_asked(2)
        remote.gate.set()
        assert (await other).results == answers_to([[3]])
    assert remote.cancelled == [remote.asked[0]]


async def test_a_call_with_an_item_that_somebody_wants_goes_on() -> None:
    remote = Remote()
    async with calling(remote) as batcher:
        first = asyncio.create_task(served(batcher, text_items([1], [2])))
        await remote.until_asked()
        second = asyncio.create_task(served(batcher, text_items([2])))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0.01)
        remote.gate.set()
        assert (await second).results == answers_to([[2]])
    assert len(remote.asked) == 1
    assert not remote.cancelled


async def test_a_request_that_comes_while_its_call_is_cancelled_is_answered() -> None:
    remote = Remote()
    async with calling(remote) as batcher:
        first = asyncio.create_task(served(batcher, text_items([1])))
        await remote.until_asked()
        first.cancel()
        others = [asyncio.create_task(served(batcher, text_items([1]))) for _ in range(3)]
        for other in others:
            await asyncio.sleep(0)
            assert not other.done()
        remote.gate.set()
        for other in others:
            assert (await other).results == answers_to([[1]])


async def test_a_call_ends_with_the_latest_deadline_of_its_requests() -> None:
    remote, deadline = Remote(), perf_counter() + 0.05
    async with calling(remote) as batcher:
        with pytest.raises(DeadlineExceeded):
            await served(batcher, text_items([1]), Terms(deadline=deadline))
        await asyncio.sleep(0.01)
    assert remote.deadlines == [deadline]
    assert remote.cancelled == remote.asked


async def test_a_failed_call_fails_all_of_its_requests_and_is_not_made_again_in_halves() -> None:
    remote, observer = Remote(), RecordingObserver()
    remote.failure = RemoteFailed("no such model there")
    remote.gate.set()
    async with calling(remote, observer=observer) as batcher:
        with pytest.raises(RemoteFailed, match="no such model there"):
            await served(batcher, text_items([1], [2], [3], [4]))
        remote.failure = None
        assert (await served(batcher, text_items([5]))).results == answers_to([[5]])
    assert len(remote.asked) == 2
    assert observer.named("batch_failed") == [{"model": "remote", "pairs": 4}]


async def test_a_large_request_is_cut_into_whole_calls() -> None:
    remote = Remote()
    remote.gate.set()
    rows = [[number] for number in range(1, 701)]
    async with calling(remote, limit=8, pairs=100) as batcher:
        assert (await served(batcher, text_items(*rows))).results == answers_to(rows)
    assert [len(texts) for texts in remote.asked] == [100] * 7


async def test_only_items_of_one_group_share_a_call() -> None:
    remote = Remote()
    remote.gate.set()
    items = [item._replace(group=item.payload in ("1", "3")) for item in text_items([1], [2], [3], [4])]
    async with calling(remote) as batcher:
        assert (await served(batcher, items)).results == answers_to([[1], [2], [3], [4]])
    assert sorted(map(sorted, remote.asked)) == [["1", "3"], ["2", "4"]]
