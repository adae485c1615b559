"""One suite over every store of jobs: SQLite, a real Redis, and a real cluster."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from rerankd.cache.access import Access
from rerankd.errors import StoreFull, StoreUnavailable
from rerankd.jobs.records import Counts, Job, Passed, Status, Upload
from rerankd.jobs.redis import RedisStore
from rerankd.jobs.sqlite import SqliteStore
from rerankd.jobs.store import JobStore
from tests.redis_deployments import redis_cluster
from tests.servers import redis_server


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_cluster(tmp_path_factory.mktemp("cluster"), masters=2) as servers:
        yield f"redis+cluster://127.0.0.1:{servers[0].port}"


@pytest.fixture(params=["sqlite", *(pytest.param(one, marks=pytest.mark.redis) for one in ("redis", "cluster"))])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    opened: JobStore
    if request.param == "sqlite":
        opened = SqliteStore(tmp_path / "jobs")
    else:
        opened = RedisStore.from_url(request.getfixturevalue(f"{request.param}_url"), Access())
    await opened.open()
    yield opened
    await opened.close()


def _job(owner: str, **fields: object) -> Job:
    made = Job(
        id=f"batch_{token_hex(12)}",
        owner=owner,
        input_id="file-1",
        endpoint="/v1/rerank",
        window="24h",
        created_at=100,
        expires_at=200,
    )
    return made.entering(made.status, now=100, **fields)


@pytest.fixture
def owner() -> str:
    return f"key {token_hex(4)} à"


async def _file(store: JobStore, owner: str, *chunks: bytes) -> Upload:
    upload = Upload(id=f"file-{token_hex(12)}", owner=owner, name="f", size=sum(map(len, chunks)), created_at=100)
    for number, chunk in enumerate(chunks):
        await store.write_chunk(upload.id, owner, number, chunk, now=100)
    assert await store.finish_file(upload, most=1000)
    return upload


async def _add(store: JobStore, job: Job) -> None:
    assert await store.add_job(job, most_waiting=1000, most_kept=1000) is None


async def test_a_file_is_read_as_it_was_written_and_seen_when_it_is_whole(store: JobStore, owner: str) -> None:
    every_byte = bytes(range(256))
    await store.write_chunk("file-half", owner, 0, b"x", now=100)
    upload = await _file(store, owner, every_byte, b"", b"end")
    assert await store.files(owner) == [upload]
    assert await store.file(upload.id) == upload
    assert await store.file("file-half") is None
    assert [await store.read_chunk(upload.id, number) for number in range(4)] == [every_byte, b"", b"end", None]


async def test_bytes_are_counted_until_they_are_deleted(store: JobStore, owner: str) -> None:
    before, own = await store.used_bytes(owner)
    assert own == 0
    upload, empty = await _file(store, owner, b"12345"), await _file(store, owner)
    job = _job(owner)
    await _add(store, job)
    assert await store.lease(job.id, "me", seconds=60)
    assert await store.add_result(job.id, "me", 0, b"123", failed=False)
    assert await store.add_result(job.id, "me", 1, b"1", failed=True)
    assert await store.used_bytes(owner) == (before + 9, 9)
    await store.delete_results(job.id, failed=False)
    assert await store.used_bytes(owner) == (before + 6, 6)
    await store.delete_job(job.id)
    for file_id in (upload.id, upload.id, empty.id):
        await store.delete_file(file_id)
    assert await store.used_bytes(owner) == (before, 0)
    assert await store.files(owner) == []
    assert await store.jobs(owner) == []


async def test_a_job_is_changed_by_the_one_that_has_seen_it_last(store: JobStore, owner: str) -> None:
    job = _job(owner, metadata={"a": "b"})
    await _add(store, job)
    kept = await store.job(job.id)
    assert kept is not None
    assert (kept.job, kept.counts) == (job, Counts())
    cancelling = job.entering(Status.CANCELLING, now=150)
    assert await store.change_job(cancelling, version=kept.version)
    assert not await store.change_job(job.entering(Status.COMPLETED, now=160), version=kept.version)
    (again,) = await store.jobs(owner)
    assert again.job == cancelling
    assert await store.jobs("another") == []


async def test_what_comes_within_one_second_keeps_its_order(store: JobStore, owner: str) -> None:
    jobs, uploads = [_job(owner) for _ in range(20)], [await _file(store, owner, b"x") for _ in range(20)]
    for job in jobs:
        await _add(store, job)
    assert [kept.job for kept in await store.jobs(owner)] == jobs
    assert await store.files(owner) == uploads
    ids = {job.id for job in jobs}
    assert [one.id for one in await store.waiting_jobs() if one.id in ids] == [job.id for job in jobs]


async def test_calls_at_the_same_time_pass_no_limit(store: JobStore, owner: str) -> None:
    jobs = [_job(owner) for _ in range(8)]
    added = await asyncio.gather(*(store.add_job(job, most_waiting=3, most_kept=100) for job in jobs))
    assert Counter(added) == {None: 3, Passed.WAITING: 5}
    for kept in await store.jobs(owner):
        assert await store.change_job(kept.job.entering(Status.COMPLETED, now=160), version=0)
    more = [_job(owner) for _ in range(8)]
    added = await asyncio.gather(*(store.add_job(job, most_waiting=100, most_kept=5) for job in more))
    assert Counter(added) == {None: 2, Passed.KEPT: 6}
    assert len(await store.jobs(owner)) == 5
    uploads = [Upload(id=f"file-{token_hex(12)}", owner=owner, name="f", size=0, created_at=100) for _ in range(8)]
    finished = await asyncio.gather(*(store.finish_file(upload, most=3) for upload in uploads))
    assert sum(finished) == len(await store.files(owner)) == 3
    assert await store.add_job(_job(f"another than {owner}"), most_waiting=1, most_kept=1) is None


async def test_one_at_a_time_has_the_lease_and_a_job_that_has_ended_has_none(store: JobStore, owner: str) -> None:
    job = _job(owner)
    await _add(store, job)
    assert [one.leased for one in await store.waiting_jobs() if one.id == job.id] == [False]
    taken = await asyncio.gather(*(store.lease(job.id, f"process {one}", seconds=60) for one in range(8)))
    assert sum(taken) == 1
    holder = f"process {taken.index(True)}"
    assert [(one.owner, one.leased) for one in await store.waiting_jobs() if one.id == job.id] == [(owner, True)]
    await store.release(job.id, "another")
    assert not await store.lease(job.id, "another", seconds=60)
    assert await store.lease(job.id, holder, seconds=60), "renewed"
    await store.release(job.id, holder)
    assert await store.lease(job.id, "another", seconds=60)
    assert await store.change_job(job.entering(Status.COMPLETED, now=160), version=0)
    assert [one for one in await store.waiting_jobs() if one.id == job.id] == []
    assert not await store.lease(job.id, "another", seconds=60)
    assert not await store.add_result(job.id, "another", 0, b"late", failed=False)


async def test_the_lease_of_a_process_that_died_is_taken(store: JobStore, owner: str) -> None:
    job = _job(owner)
    await _add(store, job)
    assert await store.lease(job.id, "dead", seconds=-2)
    assert await store.lease(job.id, "next", seconds=60)
    assert not await store.add_result(job.id, "dead", 0, b"stale", failed=False)
    assert await store.done_lines(job.id) == set()


async def test_a_line_has_one_result_whatever_its_kind(store: JobStore, owner: str) -> None:
    job = _job(owner)
    await _add(store, job)
    await store.lease(job.id, "me", seconds=60)
    for number, line, failed in ((7, b"seven", False), (2, b"two", False), (3, b"three", True)):
        assert await store.add_result(job.id, "me", number, line, failed=failed)
    for failed in (False, True):
        assert await store.add_result(job.id, "me", 7, b"again", failed=failed), "it has one, which is no error"
    assert await store.done_lines(job.id) == {2, 3, 7}

    async def read(first: int, end: int, *, failed: bool, most_bytes: int = 100) -> tuple[list[bytes], int]:
        lines, following = await store.read_results(job.id, failed=failed, first=first, end=end, most_bytes=most_bytes)
        return [*lines], following

    assert await read(0, 8, failed=False) == ([b"two", b"seven"], 8)
    assert await read(0, 8, failed=False, most_bytes=3) == ([b"two"], 3)
    assert await read(3, 7, failed=False) == ([], 7)
    assert await read(0, 8, failed=True) == ([b"three"], 8)
    kept = await store.job(job.id)
    assert kept is not None
    assert kept.counts == Counts(answered=2, failed=1, answered_bytes=8, failed_bytes=5)


async def test_what_is_old_is_found(store: JobStore, owner: str) -> None:
    upload, job = await _file(store, owner, b"x"), _job(owner)
    await store.write_chunk("file-never-whole", owner, 0, b"x", now=100)
    await _add(store, job)
    files, jobs = await store.older_than(100.5)
    assert {upload.id, "file-never-whole"} <= set(files)
    assert job.id in jobs
    assert await store.older_than(100) == ([], [])


async def _fill_up(store: JobStore) -> None:
    """Write until there is no room."""
    for number in range(1000):
        try:
            await store.write_chunk("file-large", "large", number, b"x" * 10_000, now=100)
        except StoreFull:
            return
    pytest.fail("it was never full")


async def _deletes_when_full(store: JobStore, owner: str) -> None:
    """Clients can make room, and what they delete counts no more."""
    upload, job = await _file(store, owner, b"x" * 1000), _job(owner)
    await _add(store, job)
    assert await store.lease(job.id, "me", seconds=60)
    assert await store.add_result(job.id, "me", 0, b"x" * 1000, failed=False)
    await _fill_up(store)
    with pytest.raises(StoreFull):
        await store.write_chunk("file-large", "large", 1000, b"x" * 10_000, now=100)
    await store.delete_results(job.id, failed=False)
    await store.delete_job(job.id)
    await store.delete_file(upload.id)
    assert (await store.used_bytes(owner))[1] == 0
    await store.delete_file("file-large")
    assert await store.used_bytes(owner) == (0, 0)


async def test_what_is_on_a_full_disk_can_be_deleted(tmp_path: Path, owner: str) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store._call(store._run, "PRAGMA max_page_count = 100")
    await _deletes_when_full(store, owner)
    await _file(store, owner, b"x" * 100_000)
    await store.close()


@pytest.mark.redis
async def test_what_is_in_a_full_redis_can_be_deleted(tmp_path: Path, owner: str) -> None:
    with redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = RedisStore.from_url(f"redis://127.0.0.1:{server.port}", Access())
        await store.open()
        await _deletes_when_full(store, owner)
        await store.close()


async def test_a_broken_database_is_told_as_one_that_is_away(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await _file(store, "", b"x" * 100_000)
    await store.close()
    file = tmp_path / "jobs.sqlite3"
    content = file.read_bytes()
    file.write_bytes(content[:4096] + bytes(len(content) - 4096))
    store = SqliteStore(tmp_path)
    await store.open()
    with pytest.raises(StoreUnavailable, match="malformed"):
        await store.waiting_jobs()
    await store.close()
