"""Where jobs and files are kept, for one process or for several that continue one another's jobs.

A process works on a job while it has the lease, which is its `token` until a time. Results are accepted from the holder
of the lease alone, and once for each line: whatever dies when, a line has one result.
"""

from collections.abc import Sequence
from typing import Protocol

from rerankd.jobs.records import Job, Kept, Passed, Upload, Waiting


class JobStore(Protocol):
    """Every method raises StoreUnavailable if the store does not answer."""

    async def open(self) -> None:
        """Get ready.

        Raises:
            ConfigError: this store can never be used.
        """

    async def close(self) -> None: ...

    async def used_bytes(self, owner: str) -> tuple[int, int]:
        """Bytes of all files and results, and of this owner's."""

    # Files. One is not seen before it is finished.

    async def write_chunk(self, file_id: str, owner: str, number: int, chunk: bytes, *, now: float) -> None: ...

    async def finish_file(self, upload: Upload, *, most: int) -> bool:
        """Show a file, unless its owner has `most` others."""

    async def file(self, file_id: str) -> Upload | None: ...

    async def files(self, owner: str) -> list[Upload]:
        """As they came."""

    async def read_chunk(self, file_id: str, number: int) -> bytes | None: ...

    async def delete_file(self, file_id: str) -> None:
        """Delete a file, finished or not."""

    # Jobs.

    async def add_job(self, job: Job, *, most_waiting: int, most_kept: int) -> Passed | None:
        """Keep a job, unless its owner has `most_waiting` others that have not ended, or `most_kept` others."""

    async def job(self, job_id: str) -> Kept | None: ...

    async def jobs(self, owner: str) -> list[Kept]:
        """As they came."""

    async def change_job(self, job: Job, *, version: int) -> bool:
        """Replace a job unless it was changed since; one that has ended has no lease any more."""

    async def delete_job(self, job_id: str) -> None:
        """Delete a job and its results."""

    async def waiting_jobs(self) -> list[Waiting]:
        """Those that have not ended, the oldest first."""

    async def lease(self, job_id: str, token: str, *, seconds: float) -> bool:
        """Take or renew the lease of a job that has not ended, unless another token has it."""

    async def release(self, job_id: str, token: str) -> None: ...

    # Results. `kind` is "answered" or "failed".

    async def add_result(self, job_id: str, token: str, number: int, line: bytes, *, failed: bool) -> bool:
        """Keep the result of a line unless it has one. False: the token has no lease."""

    async def done_lines(self, job_id: str) -> set[int]:
        """The numbers of the lines that have a result."""

    async def read_results(
        self, job_id: str, *, failed: bool, first: int, end: int, most_bytes: int
    ) -> tuple[Sequence[bytes], int]:
        """Results of one kind, in the order of their lines, from `first` to before `end`. It stops after the one with
        which they have `most_bytes`, or earlier, and says from which line to go on.
        """

    async def delete_results(self, job_id: str, *, failed: bool) -> None: ...

    async def older_than(self, moment: float) -> tuple[list[str], list[str]]:
        """The ids of files and of jobs that were begun before this moment."""
