"""What a runner does when it cannot do what it should: it waits, it ends the job, or it leaves it to another."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rerankd.errors import InvalidRequest, NotChanged, RateLimited, StoreFull, Unauthorized
from rerankd.jobs.jobs import JobLimits, Jobs
from rerankd.jobs.records import Kept, Waiting
from rerankd.jobs.runner import JobRunner, Workplace
from rerankd.jobs.sqlite import SqliteStore
from tests.fakes import RecordingObserver

_LIMITS = JobLimits(file_bytes=10_000, store_bytes=100_000, lines=50, waiting=2, kept=5, keep_s=7 * 86400)


@dataclass
class _Answers:
    """Answers lines at once, unless `before` has something against it."""

    before: Callable[[Mapping[str, Any]], None] = lambda _: None
    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def read(self, text: bytes, /, *, owner: str) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = json.loads(text)
        except ValueError:
            raise InvalidRequest("no JSON") from None
        return found

    async def answer(
        self,
        line: Mapping[str, Any],
        text: bytes,
        /,
        *,
        endpoint: str,
        owner: str,
        left_s: float,
    ) -> tuple[int, bytes]:
        assert left_s > 0
        self.asked.append(line["custom_id"])
        self.before(line)
        await self.gate.wait()
        return 200, b"{}"


@dataclass
class _Clock:
    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class _Desk:
    store: SqliteStore
    jobs: Jobs
    observer: RecordingObserver

    async def begin(self, *custom_ids: str, owner: str = "a") -> Kept:
        lines = [json.dumps({"custom_id": one, "url": "/v1/rerank", "body": {}}) for one in custom_ids]
        file = await self.jobs.receive(owner, _chunks("\n".join(lines).encode()), lambda: "f")
        return await self.jobs.create(owner, input_id=file.id, endpoint="/v1/rerank", window="1h", metadata={})

    async def until(self, job_id: str, status: str, *, owner: str = "a") -> Kept:
        async with asyncio.timeout(30):
            while (kept := await self.jobs.job(owner, job_id)).job.status != status:  # noqa: ASYNC110 - as a client does
                await asyncio.sleep(0.01)
        return kept

    async def lines(self, kept: Kept, *, failed: bool = False) -> list[dict[str, Any]]:
        file_id = self.jobs.results_of(kept)[failed]
        assert file_id is not None
        content = b"".join([chunk async for chunk in await self.jobs.content(kept.job.owner, file_id)])
        return [json.loads(line) for line in content.splitlines()]


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@asynccontextmanager
async def _desk(
    folder: Path, answers: _Answers, *, clock: Callable[[], float] = time.time, limits: JobLimits = _LIMITS
) -> AsyncIterator[_Desk]:
    store, observer = SqliteStore(folder, clock=clock), RecordingObserver()
    await store.open()
    place = Workplace(store=store, answers=answers, observer=observer, limits=limits, line_bytes=1000, clock=clock)
    runner = JobRunner(place)
    working = asyncio.create_task(runner.run())
    try:
        yield _Desk(
            store,
            Jobs(store, runner, limits=limits, endpoints=["/v1/rerank"], shared=lambda: True, clock=clock),
            observer,
        )
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await store.close()


async def test_a_line_waits_for_its_quota(tmp_path: Path) -> None:
    tries = iter([RateLimited("later", retry_after_s=0.01)])

    def refuse_once(_line: Mapping[str, Any]) -> None:
        for error in tries:
            raise error

    answers = _Answers(refuse_once)
    async with _desk(tmp_path, answers) as desk:
        done = await desk.until((await desk.begin("x")).job.id, "completed")
        assert [line["custom_id"] for line in await desk.lines(done)] == ["x"]
    assert answers.asked == ["x", "x"]
    assert desk.observer.named("job_changed")[-1] == {"running": 0, "ended": "completed"}


async def test_what_is_not_answered_when_the_window_closes_says_so(tmp_path: Path) -> None:
    clock, answers = _Clock(), _Answers()
    async with _desk(tmp_path, answers, clock=clock) as desk:
        answers.gate.clear()
        job = (await desk.begin("x", "y")).job
        async with asyncio.timeout(30):
            while len(answers.asked) < 2:  # noqa: ASYNC110 - the runner tells nobody
                await asyncio.sleep(0.01)
        clock.ahead_s = 3601
        desk.jobs._runner.wake()
        done = await desk.until(job.id, "expired")
        assert {line["error"]["code"] for line in await desk.lines(done, failed=True)} == {"batch_expired"}
        assert done.counts.failed == done.job.total == 2


async def test_the_jobs_of_a_key_that_was_removed_end(tmp_path: Path) -> None:
    def removed(_line: Mapping[str, Any]) -> None:
        raise Unauthorized("the API key was removed")

    async with _desk(tmp_path, _Answers(removed)) as desk:
        done = await desk.until((await desk.begin("x", "y")).job.id, "failed")
        assert [problem.code for problem in done.job.problems] == ["unauthorized"]
        assert len(await desk.lines(done, failed=True)) == 2


async def test_keys_do_not_wait_for_one_another(tmp_path: Path) -> None:
    answers = _Answers()
    async with _desk(tmp_path, answers) as desk:
        answers.gate.clear()
        first, second = await desk.begin("a1"), await desk.begin("a2")
        other = await desk.begin("b1", owner="b")
        async with asyncio.timeout(30):
            while sorted(answers.asked) != ["a1", "b1"]:  # noqa: ASYNC110 - the runner tells nobody
                await asyncio.sleep(0.01)
        answers.gate.set()
        await desk.until(first.job.id, "completed")
        await desk.until(second.job.id, "completed")
        await desk.until(other.job.id, "completed", owner="b")
    assert [one for one in answers.asked if one.startswith("a")] == ["a1", "a2"], "one job of a key at a time"


async def test_a_runner_that_stops_leaves_its_job_to_the_next_one_at_once(tmp_path: Path) -> None:
    answers = _Answers()
    async with _desk(tmp_path, answers) as desk:
        answers.gate.clear()
        job = (await desk.begin("x")).job
        async with asyncio.timeout(30):
            while not answers.asked:  # noqa: ASYNC110 - the runner tells nobody
                await asyncio.sleep(0.01)
    async with _desk(tmp_path, _Answers()) as desk:
        done = await desk.until(job.id, "completed")
        assert done.counts.answered == 1


async def test_another_owner_of_the_lease_keeps_what_this_one_computes_out(tmp_path: Path) -> None:
    answers = _Answers()
    async with _desk(tmp_path, answers) as desk:
        answers.gate.clear()
        job = (await desk.begin("x")).job
        async with asyncio.timeout(30):
            while not answers.asked:  # noqa: ASYNC110 - the runner tells nobody
                await asyncio.sleep(0.01)
        await desk.store._call(desk.store._run, "UPDATE jobs SET token = 'other', leased_until = 1e12")
        answers.gate.set()
        async with asyncio.timeout(30):
            while desk.observer.named("job_changed")[-1]["running"]:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        kept = await desk.jobs.job("a", job.id)
        assert (kept.job.status, kept.counts.results) == ("in_progress", 0)


@pytest.mark.parametrize(
    ("custom_ids", "code"),
    [([], "empty_file"), ([str(one) for one in range(51)], "too_many_lines"), (["x" * 995], "line_too_long")],
)
async def test_a_file_that_breaks_a_bound_fails(tmp_path: Path, custom_ids: Sequence[str], code: str) -> None:
    async with _desk(tmp_path, _Answers()) as desk:
        done = await desk.until((await desk.begin(*custom_ids)).job.id, "failed")
    assert [problem.code for problem in done.job.problems] == [code]


async def test_results_that_have_no_room_end_the_job_with_those_that_are_there(tmp_path: Path) -> None:
    async with _desk(tmp_path, _Answers()) as desk:
        add_result, tries = desk.store.add_result, iter(range(100))

        async def add_two(*arguments: Any, **more: Any) -> bool:
            if next(tries) >= 2:
                raise StoreFull("full")
            return await add_result(*arguments, **more)

        desk.store.add_result = add_two  # type: ignore[method-assign] # a disk that is full
        done = await desk.until((await desk.begin("x", "y", "z")).job.id, "failed")
        assert [problem.code for problem in done.job.problems] == ["store_full"]
        assert len(await desk.lines(done)) == 2


async def test_what_may_be_kept_is_bounded(tmp_path: Path) -> None:
    answers = _Answers()
    async with _desk(tmp_path, answers) as desk:
        answers.gate.clear()
        first = await desk.begin("x")
        with pytest.raises(NotChanged):
            await desk.jobs.delete_file("a", first.job.input_id)
        await desk.begin("y")
        with pytest.raises(Exception, match="at most 2 batches"):
            await desk.begin("z")
        before = await desk.store.used_bytes("a")
        with pytest.raises(Exception, match="at most 10000 bytes"):
            await desk.jobs.receive("a", _chunks(b"x" * 9000, b"x" * 9000), lambda: "f")
        assert await desk.store.used_bytes("a") == before, "nothing of it is left"
        for _ in range(2):
            await desk.jobs.receive("a", _chunks(b"x"), lambda: "f")
        with pytest.raises(StoreFull, match="at most 5 files"):
            await desk.jobs.receive("a", _chunks(b"x"), lambda: "f")


async def test_an_unexpected_error_does_not_end_the_work_on_jobs(tmp_path: Path) -> None:
    async with _desk(tmp_path, _Answers()) as desk:
        waiting_jobs, errors = desk.store.waiting_jobs, iter([ValueError("of a newer version")])

        async def fail_once() -> list[Waiting]:
            for error in errors:
                raise error
            return await waiting_jobs()

        desk.store.waiting_jobs = fail_once  # type: ignore[method-assign] # a mistake of ours
        await desk.until((await desk.begin("x")).job.id, "completed")


async def test_what_is_old_is_deleted(tmp_path: Path) -> None:
    clock = _Clock()
    async with _desk(tmp_path, _Answers(), clock=clock) as desk:
        done = await desk.until((await desk.begin("x")).job.id, "completed")
        await desk.store.write_chunk("file-half", "a", 0, b"x", now=clock())
    clock.ahead_s = 8 * 86400
    async with _desk(tmp_path, _Answers(), clock=clock) as desk:
        async with asyncio.timeout(30):
            while await desk.store.used_bytes("a") != (0, 0):  # noqa: ASYNC110 - the runner tells nobody
                await asyncio.sleep(0.01)
        assert await desk.store.job(done.job.id) is None
        assert await desk.jobs.files("a") == []
