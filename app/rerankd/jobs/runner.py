"""Works on jobs: takes the lease of one, answers its lines, and keeps each result as it comes.

A process works on one job of a key at a time, so that keys do not wait for one another. Lines run as background work
(`Terms.background`), some at a time so that they share batches. What one cannot have now, it waits for: a quota, a
model that loads, memory. When a process dies, another one, or itself after a restart, goes on with the lines that have
no result.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Final, Protocol, TypeVar

from rerankd.errors import Forbidden, InvalidRequest, StoreFull, StoreUnavailable, Unauthorized, Unavailable
from rerankd.jobs.jobs import JobLimits
from rerankd.jobs.lines import Line, Unreadable, answer_line, error_line, known_id, problem_of, read_lines
from rerankd.jobs.records import MOST_PROBLEMS, Job, Kept, Problem, Status
from rerankd.jobs.store import JobStore
from rerankd.telemetry.observer import Observer
from rerankd.telemetry.spans import leave_trace

T = TypeVar("T")

logger = logging.getLogger(__name__)
audit = logging.getLogger("rerankd.audit")

# Lines of one job that run at a time, and their bytes.
_LINES_AT_A_TIME: Final = 16
_BYTES_AT_A_TIME: Final = 4 << 20
_LEASE_S: Final = 15.0
_RENEWED_EVERY_S: Final = 3.0
_LOOKS_EVERY_S: Final = 2.0
_SWEEPS_EVERY_S: Final = 600.0
# An upload that has not arrived whole by then never will.
_LONGEST_UPLOAD_S: Final = 24 * 3600.0
_LONGEST_WAIT_S: Final = 30.0
_AGAIN_AFTER_S: Final = 1.0


class Answers(Protocol):
    """How lines become answers."""

    async def read(self, text: bytes, /, *, owner: str) -> Mapping[str, Any]:
        """The JSON object of a line.

        Raises:
            InvalidRequest: it is none.
        """

    async def answer(
        self, line: Mapping[str, Any], text: bytes, /, *, endpoint: str, owner: str, left_s: float
    ) -> tuple[int, bytes]:
        """Status and body of the answer to a line; `text` is what its fields were read from.

        Raises:
            Unavailable: the same line may be answered later.
            Unauthorized, Forbidden: the owner's key is not valid any more.
        """


class _End(Exception):
    """A job ends before all of its lines were answered."""

    def __init__(self, status: Status, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _LeaseLost(Exception):
    """Another process works on the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What all jobs of a process work with; `token` holds their leases. A line has at most `line_bytes`."""

    store: JobStore
    answers: Answers
    observer: Observer
    limits: JobLimits
    line_bytes: int
    clock: Callable[[], float] = time.time
    token: str = field(default_factory=lambda: token_hex(16))


class JobRunner:
    """Works on all jobs that this process can get."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._store = place.store
        self._woken = asyncio.Event()
        self._running: dict[str, _RunningJob] = {}

    def wake(self) -> None:
        """There may be something new to do: see `rerankd.jobs.jobs.Runner`."""
        self._woken.set()
        for job in self._running.values():
            job.look()

    async def run(self) -> None:
        """Work until cancelled; then leases are released, so that others go on at once."""
        leave_trace()
        swept_at = 0.0
        async with asyncio.TaskGroup() as working:
            while True:
                self._woken.clear()
                try:
                    if self._place.clock() - swept_at > _SWEEPS_EVERY_S:
                        swept_at = self._place.clock()
                        await self._sweep()
                    await self._take_jobs(working)
                except (StoreUnavailable, StoreFull):
                    pass
                except Exception:
                    # As in a job, it ends this try alone.
                    logger.exception("unexpected error while looking for jobs")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOKS_EVERY_S):
                        await self._woken.wait()

    async def _take_jobs(self, working: asyncio.TaskGroup) -> None:
        for waiting in await self._store.waiting_jobs():
            if waiting.owner in self._running or waiting.leased:
                continue
            if await self._store.lease(waiting.id, self._place.token, seconds=_LEASE_S):
                job = self._running[waiting.owner] = _RunningJob(self._place, waiting.id)
                self._place.observer.job_changed(running=len(self._running))
                working.create_task(self._work_on(job, waiting.owner), name=f"job {waiting.id}")

    async def _work_on(self, job: "_RunningJob", owner: str) -> None:
        ended = ""
        try:
            ended = await job.run()
        except (_LeaseLost, StoreUnavailable, StoreFull) as error:
            logger.warning("a job waits for another try: %s", error, extra={"job": job.id})
        except Exception:
            # A mistake of ours ends one try, and neither the job nor those of others.
            logger.exception("unexpected error in a job", extra={"job": job.id})
            await asyncio.sleep(_LONGEST_WAIT_S)
        finally:
            del self._running[owner]
            self._place.observer.job_changed(running=len(self._running), ended=ended)
            with suppress(StoreUnavailable, StoreFull):
                await self._store.release(job.id, self._place.token)
            self._woken.set()

    async def _sweep(self) -> None:
        """Delete what has been kept long enough, and files that never arrived whole."""
        files, jobs = await self._store.older_than(self._place.clock() - self._place.limits.keep_s)
        reading = set()
        for waiting in await self._store.waiting_jobs():
            kept = await self._store.job(waiting.id)
            reading |= {kept.job.input_id} if kept else set()
        for job_id in jobs:
            kept = await self._store.job(job_id)
            if kept is not None and kept.job.status.ended:
                await self._store.delete_job(job_id)
        for file_id in files:
            if file_id not in reading:
                await self._store.delete_file(file_id)
        files, _ = await self._store.older_than(self._place.clock() - _LONGEST_UPLOAD_S)
        for file_id in files:
            if await self._store.file(file_id) is None:
                await self._store.delete_file(file_id)


class _RunningJob:
    """One job while this process has its lease."""

    def __init__(self, place: Workplace, job_id: str) -> None:
        self.id = job_id
        self._place = place
        self._store = place.store
        self._look = asyncio.Event()
        self._over = asyncio.Event()
        self._end: _End | None = None
        self._bytes = 0
        self._room = asyncio.Condition()

    def look(self) -> None:
        """The job may have been cancelled."""
        self._look.set()

    async def run(self) -> str:
        """Work to the job's end; its last status."""
        async with self._leased():
            kept = await self._store.job(self.id)
            if kept is None:
                raise _LeaseLost(f"{self.id} is not there any more")
            job = kept.job
            if job.status is Status.VALIDATING:
                job = await self._validated(job)
            if not job.status.ended:
                if job.total:
                    await self._answer_lines(job)
                job = await self._changed(self._ended)
        audit.info("job ended", extra={"by": job.owner, "job": job.id, "status": str(job.status)})
        return str(job.status)

    @asynccontextmanager
    async def _leased(self) -> AsyncIterator[None]:
        """Renew the lease, and look whether the job should end, while the block runs.

        Raises:
            _LeaseLost: another process may have it; the block is cancelled.
        """
        block = asyncio.current_task()
        assert block is not None  # noqa: S101 - a task runs this
        lost = False

        async def renew() -> None:
            nonlocal lost
            renewed_at = self._place.clock()
            while True:
                self._look.clear()
                try:
                    held = await self._store.lease(self.id, self._place.token, seconds=_LEASE_S)
                    renewed_at = self._place.clock() if held else renewed_at
                    await self._see_whether_over()
                except (StoreUnavailable, StoreFull):
                    held = self._place.clock() - renewed_at < _LEASE_S - _RENEWED_EVERY_S
                if not held:
                    lost = True
                    block.cancel()
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RENEWED_EVERY_S):
                        await self._look.wait()

        renewing = asyncio.create_task(renew())
        try:
            yield
        except asyncio.CancelledError:
            if lost and block.uncancel() == 0:
                raise _LeaseLost(f"{self.id} is not ours any more") from None
            raise
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _see_whether_over(self) -> None:
        kept = await self._store.job(self.id)
        if kept is None or kept.job.status.ended:
            return
        if kept.job.status is Status.CANCELLING:
            self._stop(
                _End(Status.CANCELLED, "batch_cancelled", "the batch was cancelled before this request was answered")
            )
        elif self._place.clock() >= kept.job.expires_at:
            self._stop(
                _End(Status.EXPIRED, "batch_expired", "the completion window closed before this request was answered")
            )

    def _stop(self, end: _End) -> None:
        if self._end is None:
            self._end = end
            self._over.set()

    async def _validated(self, job: Job) -> Job:
        """The job in progress, or failed with what is wrong with its file."""
        problems: list[Problem] = []
        lines = 0
        known: set[bytes] = set()
        try:
            async for line in self._lines(job):
                lines = line.number + 1
                problem = await self._problem_of(job, line, known)
                problems += [problem] if problem else []
                if len(problems) == MOST_PROBLEMS:
                    break
        except Unreadable as error:
            problems.append(Problem(code=error.code, message=str(error), line=error.number + 1))
        if not lines and not problems:
            problems.append(Problem(code="empty_file", message="the file has no requests; each line must be one"))
        status = Status.FAILED if problems else Status.IN_PROGRESS
        total = 0 if problems else len(known)
        return await self._changed(
            lambda kept: kept.job.entering(
                status if problems or kept.job.status is not Status.CANCELLING else Status.CANCELLING,
                now=self._place.clock(),
                total=total,
                lines=lines,
                problems=problems,
            )
        )

    async def _problem_of(self, job: Job, line: Line, known: set[bytes]) -> Problem | None:
        await asyncio.sleep(0)
        try:
            fields = await self._place.answers.read(line.text, owner=job.owner)
        except InvalidRequest as error:
            return Problem(code="invalid_json_line", message=error.message, line=line.number + 1)
        problem = problem_of(fields, line, job.endpoint, known)
        if problem is None:
            known.add(known_id(fields["custom_id"]))
        return problem

    def _lines(self, job: Job) -> AsyncIterator[Line]:
        return read_lines(
            self._store, job.input_id, most_bytes=self._place.line_bytes, most_lines=self._place.limits.lines
        )

    async def _answer_lines(self, job: Job) -> None:
        done = await self._store.done_lines(job.id)
        slots = asyncio.Semaphore(_LINES_AT_A_TIME)
        try:
            async with asyncio.TaskGroup() as answering:
                async for line in self._lines(job):
                    if line.number not in done:
                        await slots.acquire()
                        await self._take_room(len(line.text))
                        task = answering.create_task(self._keep_answer(job, line))
                        task.add_done_callback(lambda _: slots.release())
        except ExceptionGroup as several:
            error = several.exceptions[0]
            if not isinstance(error, Unreadable | InvalidRequest):
                raise error from None
            # It could be read when it was validated, under other limits.
            self._stop(_End(Status.FAILED, "invalid_json_line", str(error)))

    async def _take_room(self, size: int) -> None:
        async with self._room:
            await self._room.wait_for(lambda: not self._bytes or self._bytes + size <= _BYTES_AT_A_TIME)
            self._bytes += size

    async def _keep_answer(self, job: Job, line: Line) -> None:
        try:
            failed, written = await self._line_of_result(job, line)
            try:
                held = await self._store.add_result(job.id, self._place.token, line.number, written, failed=failed)
            except StoreFull:
                # What is kept already can be had; the rest has no room.
                self._stop(_End(Status.FAILED, "store_full", "there is no room for more results"))
                return
            if not held:
                raise _LeaseLost(f"{job.id} is not ours any more")
        finally:
            async with self._room:
                self._bytes -= len(line.text)
                self._room.notify_all()

    async def _line_of_result(self, job: Job, line: Line) -> tuple[bool, bytes]:
        """Whether it is an error, and the line to keep."""
        fields = await self._place.answers.read(line.text, owner=job.owner)
        custom_id = fields["custom_id"]
        while self._end is None:
            try:
                answer = await self._unless_over(self._answer(job, line, fields))
            except Unavailable as error:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(max(error.retry_after_s, _AGAIN_AFTER_S), _LONGEST_WAIT_S)):
                        await self._over.wait()
                continue
            except (Unauthorized, Forbidden) as error:
                self._stop(_End(Status.FAILED, error.code, error.message))
                continue
            if answer is not None:
                status, body = answer
                return status >= 400, answer_line(job, line, custom_id, status=status, body=body)
        return True, error_line(job, line, custom_id, code=self._end.code, message=str(self._end))

    async def _answer(self, job: Job, line: Line, fields: Mapping[str, Any]) -> tuple[int, bytes]:
        left_s = max(0.0, job.expires_at - self._place.clock())
        return await self._place.answers.answer(
            fields, line.text, endpoint=job.endpoint, owner=job.owner, left_s=left_s
        )

    async def _unless_over(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Its result; None if the job ends first."""
        working = asyncio.create_task(work)
        ending = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            ending.cancel()
            await asyncio.gather(working, ending, return_exceptions=True)

    def _ended(self, kept: Kept) -> Job:
        """The job when nothing is left to do."""
        job, end = kept.job, self._end
        if end is None and job.status is not Status.CANCELLING and kept.counts.results < job.total:
            end = _End(Status.FAILED, "file_lost", "the file of requests was lost before all of them were answered")
        status = Status.CANCELLED if job.status is Status.CANCELLING else Status.COMPLETED
        problems = [Problem(code=end.code, message=str(end))] if end and end.status is Status.FAILED else []
        return job.entering(end.status if end else status, now=self._place.clock(), problems=problems)

    async def _changed(self, change: Callable[[Kept], Job]) -> Job:
        """Change the job, whatever else changes it at the same time."""
        while True:
            kept = await self._store.job(self.id)
            if kept is None:
                raise _LeaseLost(f"{self.id} is not there any more")
            job = change(kept)
            if await self._store.change_job(job, version=kept.version):
                return job
