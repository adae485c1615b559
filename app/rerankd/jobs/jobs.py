"""What clients may do with jobs and files. A client sees only its own."""

import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Final, Protocol

from rerankd.errors import InvalidRequest, NotChanged, NotFound, Overloaded, RequestTooLarge, StoreFull
from rerankd.jobs.records import Counts, Job, Kept, Passed, Status, Upload, has_room
from rerankd.jobs.store import JobStore

audit = logging.getLogger("rerankd.audit")

CHUNK_BYTES: Final = 1 << 19
_WINDOW: Final = re.compile(r"([1-9]\d?|1[0-5]\d|16[0-8])h")
_RESULTS: Final = re.compile(r"file-([0-9a-f]{24})-(output|errors)")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """The most that is kept: bytes of a file, and of all files and results; lines of a file; jobs of a key that have
    not ended, and files and jobs of a key. After `keep_s` files and jobs that have ended are deleted.
    """

    file_bytes: int
    store_bytes: int
    lines: int
    waiting: int
    kept: int
    keep_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file as a client sees it: one that it sent, or one kind of a job's results."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    name: str
    purpose: str


class Runner(Protocol):
    """What works on jobs in this process."""

    def wake(self) -> None:
        """There may be something new to do."""


class Jobs:
    """`owner` is the name of an API key, or empty where there are none. `endpoints` are the paths that lines may name.
    `shared`: whether several keys share the store.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        *,
        limits: JobLimits,
        endpoints: Collection[str],
        shared: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._runner = runner
        self.limits = limits
        self._endpoints = endpoints
        self._shared = shared
        self._clock = clock

    async def receive(self, owner: str, chunks: AsyncIterator[bytes], name: Callable[[], str]) -> File:
        """Keep a file while it arrives; `name` is called when all of it is here, and may refuse it.

        Raises:
            RequestTooLarge, StoreFull, StoreUnavailable: nothing of it is kept.
        """
        if len(await self._store.files(owner)) >= self.limits.kept:
            raise self._too_many_files()
        now, file_id, size, number = self._clock(), f"file-{token_hex(12)}", 0, 0
        try:
            async for chunk in chunks:
                size += len(chunk)
                await self._check_room(owner, len(chunk), size)
                await self._store.write_chunk(file_id, owner, number, chunk, now=now)
                number += 1
            upload = Upload(id=file_id, owner=owner, name=name(), size=size, created_at=int(now))
            if not await self._store.finish_file(upload, most=self.limits.kept):
                raise self._too_many_files()
        except BaseException:
            await self._store.delete_file(file_id)
            raise
        return self._sent(upload)

    def _too_many_files(self) -> StoreFull:
        return StoreFull(f"at most {self.limits.kept} files are kept for one key; delete some")

    async def _check_room(self, owner: str, chunk_bytes: int, file_bytes: int) -> None:
        if file_bytes > self.limits.file_bytes:
            raise RequestTooLarge(f"a file has at most {self.limits.file_bytes} bytes; send the requests in several")
        total, own = await self._store.used_bytes(owner)
        if not has_room(chunk_bytes, most=self.limits.store_bytes, total=total, own=own, shared=self._shared()):
            raise StoreFull(
                f"{own} bytes are kept for this key, {total} in all, and at most {self.limits.store_bytes} may be: "
                "delete files and results"
            )

    async def files(self, owner: str) -> list[File]:
        """All files of a client, the oldest first."""
        sent = [self._sent(upload) for upload in await self._store.files(owner)]
        results = [
            file
            for kept in await self._store.jobs(owner)
            for file in (self._results(kept, failed=failed) for failed in (False, True))
            if file is not None
        ]
        return sorted([*sent, *results], key=lambda file: file.created_at)

    async def file(self, owner: str, file_id: str) -> File:
        """A file.

        Raises:
            NotFound: the client has no such file.
        """
        found: File | None = None
        if results := _RESULTS.fullmatch(file_id):
            kept = await self._store.job(f"batch_{results[1]}")
            if kept is not None and kept.job.owner == owner:
                found = self._results(kept, failed=results[2] == "errors")
        else:
            upload = await self._store.file(file_id)
            if upload is not None and upload.owner == owner:
                found = self._sent(upload)
        if found is None:
            raise NotFound("no such file; GET /v1/files lists yours")
        return found

    async def content(self, owner: str, file_id: str) -> AsyncIterator[bytes]:
        """A file's bytes, some at a time; raises as `file` does, at once."""
        await self.file(owner, file_id)
        if results := _RESULTS.fullmatch(file_id):
            kept = await self._store.job(f"batch_{results[1]}")
            lines = 0 if kept is None else kept.job.lines
            return self._read_results(f"batch_{results[1]}", lines, failed=results[2] == "errors")
        return self._read_file(file_id)

    async def _read_file(self, file_id: str) -> AsyncIterator[bytes]:
        number = 0
        while (chunk := await self._store.read_chunk(file_id, number)) is not None:
            yield chunk
            number += 1

    async def _read_results(self, job_id: str, end: int, *, failed: bool) -> AsyncIterator[bytes]:
        first = 0
        while first < end:
            lines, first = await self._store.read_results(
                job_id, failed=failed, first=first, end=end, most_bytes=CHUNK_BYTES
            )
            if lines:
                yield b"".join(lines)

    async def delete_file(self, owner: str, file_id: str) -> None:
        """Delete a file.

        Raises:
            NotFound: the client has no such file.
            NotChanged: a job that has not ended reads it.
        """
        await self.file(owner, file_id)
        if results := _RESULTS.fullmatch(file_id):
            await self._store.delete_results(f"batch_{results[1]}", failed=results[2] == "errors")
            return
        for kept in await self._store.jobs(owner):
            if kept.job.input_id == file_id and not kept.job.status.ended:
                raise NotChanged(f"{kept.job.id} reads this file; cancel it first, or wait for its end")
        await self._store.delete_file(file_id)

    async def create(
        self, owner: str, *, input_id: str, endpoint: str, window: str, metadata: Mapping[str, str]
    ) -> Kept:
        """Begin a job.

        Raises:
            InvalidRequest: no such endpoint or window.
            NotFound: the client has no such file.
            Overloaded: it has too many jobs that have not ended.
            StoreFull: it has too many jobs.
        """
        if endpoint not in self._endpoints:
            raise InvalidRequest(f"endpoint must be one of {', '.join(self._endpoints)}")
        hours = _WINDOW.fullmatch(window)
        if hours is None:
            raise InvalidRequest("completion_window must be a number of hours from 1h to 168h, such as 24h")
        if _RESULTS.fullmatch(input_id):
            raise InvalidRequest("input_file_id names results; send a file of requests with purpose batch")
        await self.file(owner, input_id)
        now = int(self._clock())
        job = Job(
            id=f"batch_{token_hex(12)}",
            owner=owner,
            input_id=input_id,
            endpoint=endpoint,
            window=window,
            created_at=now,
            expires_at=now + 3600 * int(hours[1]),
            metadata=metadata,
        )
        most = self.limits
        passed = await self._store.add_job(job, most_waiting=most.waiting, most_kept=most.kept)
        if passed is Passed.WAITING:
            raise Overloaded(
                f"at most {most.waiting} batches of one key may be unfinished; wait for one, or cancel it",
                retry_after_s=60,
            )
        if passed is Passed.KEPT:
            raise StoreFull(f"at most {most.kept} batches are kept for one key; old ones are deleted in time")
        audit.info("job created", extra={"by": owner, "job": job.id})
        self._runner.wake()
        return Kept(job, 0, Counts())

    async def job(self, owner: str, job_id: str) -> Kept:
        """A job.

        Raises:
            NotFound: the client has no such job.
        """
        kept = await self._store.job(job_id)
        if kept is None or kept.job.owner != owner:
            raise NotFound("no such batch; GET /v1/batches lists yours")
        return kept

    async def jobs(self, owner: str) -> list[Kept]:
        """All jobs of a client, the oldest first."""
        return await self._store.jobs(owner)

    async def cancel(self, owner: str, job_id: str) -> Kept:
        """Begin no more lines of a job. What was answered stays.

        Raises:
            NotFound: the client has no such job.
            NotChanged: it has ended.
        """
        while True:
            kept = await self.job(owner, job_id)
            if kept.job.status is Status.CANCELLING:
                return kept
            if kept.job.status.ended:
                raise NotChanged(f"this batch has ended: it is {kept.job.status}")
            job = kept.job.entering(Status.CANCELLING, now=self._clock())
            if await self._store.change_job(job, version=kept.version):
                audit.info("job cancelled", extra={"by": owner, "job": job.id})
                self._runner.wake()
                return replace(kept, job=job)

    def _sent(self, upload: Upload) -> File:
        return File(
            id=upload.id,
            bytes=upload.size,
            created_at=upload.created_at,
            expires_at=int(upload.created_at + self.limits.keep_s),
            name=upload.name,
            purpose="batch",
        )

    def _results(self, kept: Kept, *, failed: bool) -> File | None:
        """The file of one kind of a job's results; None: it has none, or has not ended."""
        size = kept.counts.failed_bytes if failed else kept.counts.answered_bytes
        ended_at = kept.job.ended_at
        if ended_at is None or not size:
            return None
        kind = "errors" if failed else "output"
        return File(
            id=results_id(kept.job, failed=failed),
            bytes=size,
            created_at=ended_at,
            expires_at=int(kept.job.created_at + self.limits.keep_s),
            name=f"{kept.job.id}_{kind}.jsonl",
            purpose="batch_output",
        )

    def results_of(self, kept: Kept) -> tuple[str | None, str | None]:
        """The ids of the files with a job's answers and with its errors; None: there is no such file."""
        files = [self._results(kept, failed=failed) for failed in (False, True)]
        answered, failed = (None if file is None else file.id for file in files)
        return answered, failed


def results_id(job: Job, *, failed: bool) -> str:
    return f"file-{job.id.removeprefix('batch_')}-{'errors' if failed else 'output'}"
