"""Jobs and files in Redis, for replicas that continue one another's jobs. All names have one tag, so that a cluster
keeps them together and a script may change several.

Nothing here expires by itself: use a Redis that evicts no keys without a time to live (`noeviction` or `volatile-*`).
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import SplitResult

from redis.exceptions import OutOfMemoryError, RedisError

from rerankd.cache.access import Access
from rerankd.cache.deployments import Deployment
from rerankd.cache.redis_url import DEFAULTS, open_deployment
from rerankd.cache.refusals import why_hopeless
from rerankd.cache.url import VARIABLE, read_parameters, split_url
from rerankd.errors import ConfigError, StoreFull, StoreUnavailable
from rerankd.jobs.records import Counts, Job, Kept, Passed, Upload, Waiting

_TIMEOUT_S: Final = 5.0
_ERRORS: Final = (RedisError, OSError, RuntimeError, TimeoutError)
_NAME: Final = "{rerankd-jobs}"
# A script holds up everything else that Redis does.
_MOST_LINES_READ: Final = 1000

# KEYS: usage, file, chunks, files, all files. ARGV: id, owner, number, chunk, now
_WRITE_CHUNK: Final = """
redis.call('HSETNX', KEYS[2], 'owner', ARGV[2])
redis.call('HSETNX', KEYS[2], 'created', ARGV[5])
redis.call('HINCRBY', KEYS[2], 'bytes', #ARGV[4])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
redis.call('ZADD', KEYS[4], 'NX', ARGV[5], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'total', #ARGV[4])
redis.call('HINCRBY', KEYS[1], 'of ' .. ARGV[2], #ARGV[4])
"""
# What comes later has a higher score, within one second too. A number as an argument would lose its last digits.
_SCORE: Final = """
local function score_in(name, created)
    local last = redis.call('ZRANGE', name, -1, -1, 'WITHSCORES')[2]
    return string.format('%.6f', math.max(tonumber(created), last and tonumber(last) + 0.000001 or 0))
end
"""
# KEYS: file, files of the owner, all files. ARGV: id, owner, created, record, most files
_FINISH_FILE: Final = f"""{_SCORE}
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[4], 'owner', ARGV[2])
redis.call('ZADD', KEYS[2], score_in(KEYS[2], ARGV[3]), ARGV[1])
redis.call('ZADD', KEYS[3], 'NX', ARGV[3], ARGV[1])
return 1
"""
# KEYS: usage, file, chunks, all files. ARGV: id, prefix of owners' files. A full Redis refuses to count, unless the
# script has deleted something before.
_DELETE_FILE: Final = """
local size, owner = tonumber(redis.call('HGET', KEYS[2], 'bytes') or 0), redis.call('HGET', KEYS[2], 'owner')
redis.call('UNLINK', KEYS[2], KEYS[3])
if owner then
    redis.call('HINCRBY', KEYS[1], 'total', 0 - size)
    redis.call('HINCRBY', KEYS[1], 'of ' .. owner, 0 - size)
    redis.call('ZREM', ARGV[2] .. owner, ARGV[1])
end
redis.call('ZREM', KEYS[4], ARGV[1])
"""
# KEYS: job, jobs of the owner, all jobs, waiting jobs. ARGV: id, owner, created, record, most waiting, most kept
_ADD_JOB: Final = f"""{_SCORE}
local waiting = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    if redis.call('ZSCORE', KEYS[4], id) then waiting = waiting + 1 end
end
if waiting >= tonumber(ARGV[5]) then return 'waiting' end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then return 'kept' end
redis.call('HSET', KEYS[1], 'record', ARGV[4], 'owner', ARGV[2], 'version', 0)
redis.call('ZADD', KEYS[2], score_in(KEYS[2], ARGV[3]), ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[4], score_in(KEYS[4], ARGV[3]), ARGV[1])
"""
# KEYS: job, waiting jobs. ARGV: id, record, version, ended
_CHANGE_JOB: Final = """
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'version', 1)
if ARGV[4] == '1' then
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('HDEL', KEYS[1], 'token', 'until')
end
return 1
"""
# KEYS: usage, job, answered, failed, all jobs, waiting jobs. ARGV: id, prefix of owners' jobs
_DELETE_JOB: Final = """
local owner = redis.call('HGET', KEYS[2], 'owner')
if owner then
    local size = (tonumber(redis.call('HGET', KEYS[2], 'answered_bytes') or 0)
        + tonumber(redis.call('HGET', KEYS[2], 'failed_bytes') or 0))
    redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4])
    redis.call('HINCRBY', KEYS[1], 'total', 0 - size)
    redis.call('HINCRBY', KEYS[1], 'of ' .. owner, 0 - size)
    redis.call('ZREM', ARGV[2] .. owner, ARGV[1])
end
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[1])
"""
# KEYS: waiting jobs. ARGV: prefix of jobs
_WAITING: Final = """
local now, found = tonumber(redis.call('TIME')[1]), {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local job = redis.call('HMGET', ARGV[1] .. id, 'owner', 'until')
    table.insert(found, id)
    table.insert(found, job[1] or '')
    table.insert(found, (tonumber(job[2] or 0) >= now) and '1' or '0')
end
return found
"""
# KEYS: job, waiting jobs. ARGV: id, token, seconds
_LEASE: Final = """
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
local now = tonumber(redis.call('TIME')[1])
local held = redis.call('HMGET', KEYS[1], 'token', 'until')
if held[1] and held[1] ~= ARGV[2] and tonumber(held[2] or 0) >= now then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'until', now + tonumber(ARGV[3]))
return 1
"""
# KEYS: job. ARGV: token
_RELEASE: Final = """
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then redis.call('HDEL', KEYS[1], 'token', 'until') end
"""
# KEYS: usage, job, waiting jobs, results of the kind, of the other kind. ARGV: id, token, number, line, kind
_ADD_RESULT: Final = """
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[2] then return 0 end
if redis.call('HEXISTS', KEYS[5], ARGV[3]) == 1 then return 1 end
if redis.call('HSETNX', KEYS[4], ARGV[3], ARGV[4]) == 1 then
    redis.call('HINCRBY', KEYS[2], ARGV[5], 1)
    redis.call('HINCRBY', KEYS[2], ARGV[5] .. '_bytes', #ARGV[4])
    redis.call('HINCRBY', KEYS[1], 'total', #ARGV[4])
    redis.call('HINCRBY', KEYS[1], 'of ' .. redis.call('HGET', KEYS[2], 'owner'), #ARGV[4])
end
return 1
"""
# KEYS: results of the kind. ARGV: first, end, most bytes
_READ_RESULTS: Final = """
local lines, size, number = {}, 0, tonumber(ARGV[1])
while number < tonumber(ARGV[2]) and size < tonumber(ARGV[3]) do
    local line = redis.call('HGET', KEYS[1], number)
    if line then
        table.insert(lines, line)
        size = size + #line
    end
    number = number + 1
end
table.insert(lines, number)
return lines
"""
# KEYS: usage, job, results of the kind. ARGV: kind
_DELETE_RESULTS: Final = """
local size = tonumber(redis.call('HGET', KEYS[2], ARGV[1] .. '_bytes') or 0)
local owner = redis.call('HGET', KEYS[2], 'owner')
redis.call('UNLINK', KEYS[3])
if owner then
    redis.call('HINCRBY', KEYS[1], 'total', 0 - size)
    redis.call('HINCRBY', KEYS[1], 'of ' .. owner, 0 - size)
    redis.call('HSET', KEYS[2], ARGV[1] .. '_bytes', 0)
end
"""


class RedisStore:
    """Waits at most five seconds for an answer."""

    def __init__(self, deployment: Deployment, *, secrets: Sequence[str]) -> None:
        self._deployment = deployment
        self._secrets = secrets

    @classmethod
    def from_url(cls, url: str, access: Access) -> "RedisStore":
        """Build from a URL of Redis, as `RERANKD_CACHE_URL` has them.

        Raises:
            ConfigError: the URL is unusable.
        """
        try:
            parts: SplitResult = split_url(url)
            if parts.scheme not in DEFAULTS:
                raise ConfigError(f"{VARIABLE} must begin with one of {', '.join(f'{one}://' for one in DEFAULTS)}")
            parameters = read_parameters(parts, DEFAULTS[parts.scheme])
            deployment, secrets = open_deployment(parts, access, parameters)
        except ConfigError as error:
            raise _named(error) from None
        return cls(deployment, secrets=secrets)

    async def open(self) -> None:
        """Ask whether it can be used; one that is away may come back.

        Raises:
            ConfigError: it can never be used as it is.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._deployment.probe()
        except _ERRORS as error:
            if reason := why_hopeless(error):
                await self.close()
                raise ConfigError(f"RERANKD_JOBS_URL: {reason}; {self._told(error)}") from None

    async def close(self) -> None:
        await self._deployment.close()

    async def used_bytes(self, owner: str) -> tuple[int, int]:
        total, own = await self._ask("HMGET", _key("usage"), "total", f"of {owner}")
        return int(total or 0), int(own or 0)

    async def write_chunk(self, file_id: str, owner: str, number: int, chunk: bytes, *, now: float) -> None:
        keys = [_key("usage"), _key("file", file_id), _key("chunks", file_id), _key("files")]
        await self._script(_WRITE_CHUNK, keys, file_id, owner, number, chunk, int(now))

    async def finish_file(self, upload: Upload, *, most: int) -> bool:
        keys = [_key("file", upload.id), _key("files of", upload.owner), _key("files")]
        fields = (upload.id, upload.owner, upload.created_at, upload.to_json())
        return bool(await self._script(_FINISH_FILE, keys, *fields, most))

    async def file(self, file_id: str) -> Upload | None:
        record = await self._ask("HGET", _key("file", file_id), "record")
        return None if record is None else Upload.from_json(record)

    async def files(self, owner: str) -> list[Upload]:
        ids = await self._ask("ZRANGE", _key("files of", owner), 0, -1)
        files = [await self.file(file_id.decode()) for file_id in ids]
        return [file for file in files if file is not None]

    async def read_chunk(self, file_id: str, number: int) -> bytes | None:
        chunk: bytes | None = await self._ask("HGET", _key("chunks", file_id), number)
        return chunk

    async def delete_file(self, file_id: str) -> None:
        keys = [_key("usage"), _key("file", file_id), _key("chunks", file_id), _key("files")]
        await self._script(_DELETE_FILE, keys, file_id, _key("files of", ""))

    async def add_job(self, job: Job, *, most_waiting: int, most_kept: int) -> Passed | None:
        keys = [_key("job", job.id), _key("jobs of", job.owner), _key("jobs"), _key("waiting")]
        fields = (job.id, job.owner, job.created_at, job.to_json())
        passed = await self._script(_ADD_JOB, keys, *fields, most_waiting, most_kept)
        return None if passed is None else Passed(passed.decode())

    async def job(self, job_id: str) -> Kept | None:
        names = ("record", "version", "answered", "failed", "answered_bytes", "failed_bytes")
        record, version, *counts = await self._ask("HMGET", _key("job", job_id), *names)
        if record is None:
            return None
        answered, failed, answered_bytes, failed_bytes = (int(count or 0) for count in counts)
        told = Counts(answered=answered, failed=failed, answered_bytes=answered_bytes, failed_bytes=failed_bytes)
        return Kept(Job.from_json(record), int(version), told)

    async def jobs(self, owner: str) -> list[Kept]:
        ids = await self._ask("ZRANGE", _key("jobs of", owner), 0, -1)
        jobs = [await self.job(job_id.decode()) for job_id in ids]
        return [job for job in jobs if job is not None]

    async def change_job(self, job: Job, *, version: int) -> bool:
        keys = [_key("job", job.id), _key("waiting")]
        return bool(await self._script(_CHANGE_JOB, keys, job.id, job.to_json(), version, int(job.status.ended)))

    async def delete_job(self, job_id: str) -> None:
        results = [_results(job_id, failed=failed) for failed in (False, True)]
        keys = [_key("usage"), _key("job", job_id), *results, _key("jobs"), _key("waiting")]
        await self._script(_DELETE_JOB, keys, job_id, _key("jobs of", ""))

    async def waiting_jobs(self) -> list[Waiting]:
        found = await self._script(_WAITING, [_key("waiting")], _key("job", ""))
        rows = zip(found[::3], found[1::3], found[2::3], strict=True)
        return [Waiting(job_id.decode(), owner.decode(), leased == b"1") for job_id, owner, leased in rows]

    async def lease(self, job_id: str, token: str, *, seconds: float) -> bool:
        return bool(await self._script(_LEASE, [_key("job", job_id), _key("waiting")], job_id, token, seconds))

    async def release(self, job_id: str, token: str) -> None:
        await self._script(_RELEASE, [_key("job", job_id)], token)

    async def add_result(self, job_id: str, token: str, number: int, line: bytes, *, failed: bool) -> bool:
        results = [_results(job_id, failed=kind) for kind in (failed, not failed)]
        keys = [_key("usage"), _key("job", job_id), _key("waiting"), *results]
        return bool(await self._script(_ADD_RESULT, keys, job_id, token, number, line, _kind(failed=failed)))

    async def done_lines(self, job_id: str) -> set[int]:
        numbers = [await self._ask("HKEYS", _results(job_id, failed=failed)) for failed in (False, True)]
        return {int(number) for kind in numbers for number in kind}

    async def read_results(
        self, job_id: str, *, failed: bool, first: int, end: int, most_bytes: int
    ) -> tuple[Sequence[bytes], int]:
        end = min(end, first + _MOST_LINES_READ)
        *lines, following = await self._script(_READ_RESULTS, [_results(job_id, failed=failed)], first, end, most_bytes)
        return lines, following

    async def delete_results(self, job_id: str, *, failed: bool) -> None:
        keys = [_key("usage"), _key("job", job_id), _results(job_id, failed=failed)]
        await self._script(_DELETE_RESULTS, keys, _kind(failed=failed))

    async def older_than(self, moment: float) -> tuple[list[str], list[str]]:
        found = [await self._ask("ZRANGEBYSCORE", _key(kind), "-inf", f"({moment}") for kind in ("files", "jobs")]
        files, jobs = ([one.decode() for one in ids] for ids in found)
        return files, jobs

    async def _script(self, script: str, keys: Sequence[str], *values: object) -> Any:  # noqa: ANN401 - as Redis answers
        return await self._ask("EVAL", script, len(keys), *keys, *values)

    async def _ask(self, *command: object) -> Any:  # noqa: ANN401 - as Redis answers
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._deployment.run(*command)
        except OutOfMemoryError:
            raise StoreFull("Redis has no memory left; delete files of jobs that have ended") from None
        except _ERRORS as error:
            raise StoreUnavailable(f"jobs cannot be read or written now: {self._told(error)}") from None

    def _told(self, error: BaseException) -> str:
        told = f"{type(error).__name__}: {error}"
        for secret in self._secrets:
            told = told.replace(secret, "***")
        return told[:300]


def _key(kind: str, name: str | None = None) -> str:
    return f"{_NAME}:{kind}" if name is None else f"{_NAME}:{kind}:{name}"


def _results(job_id: str, *, failed: bool) -> str:
    return _key(_kind(failed=failed), job_id)


def _kind(*, failed: bool) -> str:
    return "failed" if failed else "answered"


def _named(error: ConfigError) -> ConfigError:
    """What the cache says of a URL, with the name of ours."""
    return ConfigError(str(error).replace(VARIABLE, "RERANKD_JOBS_URL"))
