"""Jobs and files in one SQLite database of a folder. Processes of one machine may share it.

In WAL mode with `synchronous=NORMAL` nothing is lost with a process. With the machine, the results of the last moment
may be; their lines are computed again.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from rerankd.errors import ConfigError, StoreFull, StoreUnavailable
from rerankd.jobs.records import Counts, Job, Kept, Passed, Upload, Waiting

T = TypeVar("T")

_FILE: Final = "jobs.sqlite3"
_BUSY_S: Final = 5.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS usage (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, bytes INTEGER NOT NULL, record BLOB
);
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner, created);
CREATE TABLE IF NOT EXISTS chunks (file TEXT, number INTEGER, chunk BLOB NOT NULL, PRIMARY KEY (file, number));
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL, record BLOB NOT NULL, version INTEGER NOT NULL,
    ended INTEGER NOT NULL, token TEXT NOT NULL DEFAULT '', leased_until REAL NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    answered_bytes INTEGER NOT NULL DEFAULT 0, failed_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (owner, created);
CREATE TABLE IF NOT EXISTS results (
    job TEXT, number INTEGER, failed INTEGER NOT NULL, line BLOB NOT NULL, PRIMARY KEY (job, number)
);
"""
_COUNTS: Final = "answered, failed, answered_bytes, failed_bytes"


class SqliteStore:
    """All calls run in one thread of their own."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._database: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Make the folder and the tables where there are none.

        Raises:
            ConfigError: the folder cannot be written, or the file is something else.
        """
        try:
            await self._call(self._open)
        except (OSError, sqlite3.Error, StoreFull, StoreUnavailable) as error:
            raise ConfigError(f"RERANKD_JOBS_FOLDER: {self._folder} cannot be used: {error}") from None

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(self._folder / _FILE, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._database = database
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_TABLES)

    async def close(self) -> None:
        if self._database is not None:
            await self._call(self._database.close)
        self._thread.shutdown()

    async def used_bytes(self, owner: str) -> tuple[int, int]:
        return await self._call(self._used_bytes, owner)

    def _used_bytes(self, owner: str) -> tuple[int, int]:
        total, own = self._one(
            "SELECT COALESCE(SUM(bytes), 0), COALESCE(SUM(bytes) FILTER (WHERE owner = ?), 0) FROM usage", owner
        )
        return int(total), int(own)

    async def write_chunk(self, file_id: str, owner: str, number: int, chunk: bytes, *, now: float) -> None:
        await self._call(self._write_chunk, file_id, owner, number, chunk, now)

    def _write_chunk(self, file_id: str, owner: str, number: int, chunk: bytes, now: float) -> None:
        with self._transaction():
            self._run("INSERT OR IGNORE INTO files VALUES (?, ?, ?, 0, NULL)", file_id, owner, now)
            self._run("UPDATE files SET bytes = bytes + ? WHERE id = ?", len(chunk), file_id)
            self._run("INSERT INTO chunks VALUES (?, ?, ?)", file_id, number, chunk)
            self._count(owner, len(chunk))

    async def finish_file(self, upload: Upload, *, most: int) -> bool:
        return await self._call(self._finish_file, upload, most)

    def _finish_file(self, upload: Upload, most: int) -> bool:
        with self._transaction():
            count = "SELECT COUNT(*) FROM files WHERE owner = ? AND record IS NOT NULL"
            if self._one(count, upload.owner)[0] >= most:
                return False
            self._run(
                "INSERT OR IGNORE INTO files VALUES (?, ?, ?, 0, NULL)", upload.id, upload.owner, upload.created_at
            )
            self._run("UPDATE files SET record = ? WHERE id = ?", upload.to_json(), upload.id)
        return True

    async def file(self, file_id: str) -> Upload | None:
        rows = await self._call(self._all, "SELECT record FROM files WHERE id = ? AND record IS NOT NULL", file_id)
        return Upload.from_json(rows[0][0]) if rows else None

    async def files(self, owner: str) -> list[Upload]:
        select = "SELECT record FROM files WHERE owner = ? AND record IS NOT NULL ORDER BY CAST(created AS INT), rowid"
        return [Upload.from_json(record) for (record,) in await self._call(self._all, select, owner)]

    async def read_chunk(self, file_id: str, number: int) -> bytes | None:
        select = "SELECT chunk FROM chunks WHERE file = ? AND number = ?"
        rows = await self._call(self._all, select, file_id, number)
        return bytes(rows[0][0]) if rows else None

    async def delete_file(self, file_id: str) -> None:
        await self._call(self._delete_file, file_id)

    def _delete_file(self, file_id: str) -> None:
        with self._transaction():
            for owner, size in self._all("SELECT owner, bytes FROM files WHERE id = ?", file_id):
                self._count(owner, -size)
            self._run("DELETE FROM chunks WHERE file = ?", file_id)
            self._run("DELETE FROM files WHERE id = ?", file_id)
        self._vacuum()

    async def add_job(self, job: Job, *, most_waiting: int, most_kept: int) -> Passed | None:
        return await self._call(self._add_job, job, most_waiting, most_kept)

    def _add_job(self, job: Job, most_waiting: int, most_kept: int) -> Passed | None:
        with self._transaction():
            count = "SELECT COUNT(*), COUNT(*) FILTER (WHERE NOT ended) FROM jobs WHERE owner = ?"
            kept, waiting = self._one(count, job.owner)
            if waiting >= most_waiting:
                return Passed.WAITING
            if kept >= most_kept:
                return Passed.KEPT
            insert = "INSERT INTO jobs (id, owner, created, record, version, ended) VALUES (?, ?, ?, ?, 0, 0)"
            self._run(insert, job.id, job.owner, job.created_at, job.to_json())
        return None

    async def job(self, job_id: str) -> Kept | None:
        rows = await self._call(self._all, f"SELECT record, version, {_COUNTS} FROM jobs WHERE id = ?", job_id)  # noqa: S608 - a constant
        return _kept(rows[0]) if rows else None

    async def jobs(self, owner: str) -> list[Kept]:
        return await self._call(self._jobs, owner)

    def _jobs(self, owner: str) -> list[Kept]:
        """Read here and not on the event loop: they may have many megabytes."""
        select = f"SELECT record, version, {_COUNTS} FROM jobs WHERE owner = ? ORDER BY rowid"  # noqa: S608 - a constant
        return [_kept(row) for row in self._all(select, owner)]

    async def change_job(self, job: Job, *, version: int) -> bool:
        update = "UPDATE jobs SET record = ?, version = version + 1, ended = ? WHERE id = ? AND version = ?"
        return await self._call(self._run, update, job.to_json(), job.status.ended, job.id, version) == 1

    async def delete_job(self, job_id: str) -> None:
        await self._call(self._delete_job, job_id)

    def _delete_job(self, job_id: str) -> None:
        with self._transaction():
            for owner, *sizes in self._all("SELECT owner, answered_bytes, failed_bytes FROM jobs WHERE id = ?", job_id):
                self._count(owner, -sum(sizes))
            self._run("DELETE FROM results WHERE job = ?", job_id)
            self._run("DELETE FROM jobs WHERE id = ?", job_id)
        self._vacuum()

    async def waiting_jobs(self) -> list[Waiting]:
        select = "SELECT id, owner, leased_until >= ? FROM jobs WHERE NOT ended ORDER BY rowid"
        rows = await self._call(self._all, select, self._clock())
        return [Waiting(job_id, owner, bool(leased)) for job_id, owner, leased in rows]

    async def lease(self, job_id: str, token: str, *, seconds: float) -> bool:
        now = self._clock()
        update = (
            "UPDATE jobs SET token = ?, leased_until = ? WHERE id = ? AND NOT ended AND (token = ? OR leased_until < ?)"
        )
        return await self._call(self._run, update, token, now + seconds, job_id, token, now) == 1

    async def release(self, job_id: str, token: str) -> None:
        update = "UPDATE jobs SET token = '', leased_until = 0 WHERE id = ? AND token = ?"
        await self._call(self._run, update, job_id, token)

    async def add_result(self, job_id: str, token: str, number: int, line: bytes, *, failed: bool) -> bool:
        return await self._call(self._add_result, job_id, token, number, line, failed)

    def _add_result(self, job_id: str, token: str, number: int, line: bytes, failed: bool) -> bool:  # noqa: FBT001 - called by the method above alone
        kind = _kind(failed=failed)
        with self._transaction():
            leased = self._all("SELECT owner FROM jobs WHERE id = ? AND token = ? AND NOT ended", job_id, token)
            if not leased:
                return False
            if self._run("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", job_id, number, failed, line):
                self._run(
                    f"UPDATE jobs SET {kind} = {kind} + 1, {kind}_bytes = {kind}_bytes + ? WHERE id = ?",  # noqa: S608 - one of two words
                    len(line),
                    job_id,
                )
                self._count(leased[0][0], len(line))
        return True

    async def done_lines(self, job_id: str) -> set[int]:
        return {number for (number,) in await self._call(self._all, "SELECT number FROM results WHERE job = ?", job_id)}

    async def read_results(
        self, job_id: str, *, failed: bool, first: int, end: int, most_bytes: int
    ) -> tuple[Sequence[bytes], int]:
        return await self._call(self._read_results, job_id, failed, first, end, most_bytes)

    def _read_results(
        self,
        job_id: str,
        failed: bool,  # noqa: FBT001 - called by the method above alone
        first: int,
        end: int,
        most_bytes: int,
    ) -> tuple[Sequence[bytes], int]:
        select = (
            "SELECT number, line FROM results WHERE job = ? AND failed = ? AND number >= ? AND number < ? "
            "ORDER BY number"
        )
        lines: list[bytes] = []
        with closing(self._connected().execute(select, (job_id, failed, first, end))) as rows:
            for number, line in rows:
                lines.append(line)
                most_bytes -= len(line)
                if most_bytes <= 0:
                    return lines, number + 1
        return lines, end

    async def delete_results(self, job_id: str, *, failed: bool) -> None:
        await self._call(self._delete_results, job_id, failed)

    def _delete_results(self, job_id: str, failed: bool) -> None:  # noqa: FBT001 - called by the method above alone
        size = f"{_kind(failed=failed)}_bytes"
        with self._transaction():
            for owner, freed in self._all(f"SELECT owner, {size} FROM jobs WHERE id = ?", job_id):  # noqa: S608 - one of two words
                self._count(owner, -freed)
            self._run(f"UPDATE jobs SET {size} = 0 WHERE id = ?", job_id)  # noqa: S608 - one of two words
            self._run("DELETE FROM results WHERE job = ? AND failed = ?", job_id, failed)
        self._vacuum()

    async def older_than(self, moment: float) -> tuple[list[str], list[str]]:
        files = await self._call(self._all, "SELECT id FROM files WHERE created < ?", moment)
        jobs = await self._call(self._all, "SELECT id FROM jobs WHERE created < ?", moment)
        return [file_id for (file_id,) in files], [job_id for (job_id,) in jobs]

    async def _call(self, work: Callable[..., T], *args: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args))
        except sqlite3.DatabaseError as error:
            if "full" in str(error):
                raise StoreFull("the disk is full; delete files of jobs that have ended") from None
            raise StoreUnavailable(f"jobs cannot be read or written now: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        database = self._connected()
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already.
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _run(self, command: str, *values: object) -> int:
        """The number of rows that it changed."""
        return self._connected().execute(command, values).rowcount

    def _all(self, select: str, *values: object) -> list[Any]:
        return self._connected().execute(select, values).fetchall()

    def _one(self, select: str, *values: object) -> Any:  # noqa: ANN401 - a row of any columns
        return self._all(select, *values)[0]

    def _count(self, owner: str, size: int) -> None:
        self._run(
            "INSERT INTO usage VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes",
            owner,
            size,
        )

    def _vacuum(self) -> None:
        """Give room that is free now back to the disk."""
        self._connected().execute("PRAGMA incremental_vacuum").fetchall()

    def _connected(self) -> sqlite3.Connection:
        assert self._database is not None  # noqa: S101 - `open` comes first
        return self._database


def _kind(*, failed: bool) -> str:
    return "failed" if failed else "answered"


def _kept(row: Sequence[Any]) -> Kept:
    record, version, answered, failed, answered_bytes, failed_bytes = row
    counts = Counts(answered=answered, failed=failed, answered_bytes=answered_bytes, failed_bytes=failed_bytes)
    return Kept(Job.from_json(record), version, counts)
