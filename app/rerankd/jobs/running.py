"""Builds the jobs of a service from its settings."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

from rerankd.cache.access import Access
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.gateway.gateway import Gateway
from rerankd.jobs.jobs import JobLimits, Jobs
from rerankd.jobs.runner import Answers, JobRunner, Workplace
from rerankd.jobs.sqlite import SqliteStore
from rerankd.jobs.store import JobStore
from rerankd.telemetry.observer import Observer

_DAY_S = 24 * 3600.0


@asynccontextmanager
async def running_jobs(
    settings: Settings, gateway: Gateway, answers: Answers, observer: Observer, *, endpoints: Collection[str]
) -> AsyncIterator[Jobs | None]:
    """Jobs that are worked on until the context is left; None where the settings name no place to keep them.

    Raises:
        ConfigError: the place cannot be used.
    """
    store = _store(settings)
    if store is None:
        yield None
        return
    await store.open()
    limits = JobLimits(
        file_bytes=settings.jobs_max_file_bytes,
        store_bytes=settings.jobs_max_bytes,
        lines=settings.jobs_max_lines,
        waiting=settings.jobs_max_waiting,
        kept=settings.jobs_max_kept,
        keep_s=settings.jobs_keep_days * _DAY_S,
    )
    runner = JobRunner(
        Workplace(store=store, answers=answers, observer=observer, limits=limits, line_bytes=settings.max_body_bytes)
    )
    working = asyncio.create_task(runner.run(), name="jobs")
    try:
        yield Jobs(store, runner, limits=limits, endpoints=endpoints, shared=lambda: not gateway.keys.open)
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        await store.close()


def _store(settings: Settings) -> JobStore | None:
    if settings.jobs_folder is not None and settings.jobs_url is not None:
        raise ConfigError("RERANKD_JOBS_FOLDER and RERANKD_JOBS_URL are two places for jobs: unset one")
    if settings.jobs_url is not None:
        from rerankd.jobs.redis import RedisStore  # noqa: PLC0415 - SQLite needs no client

        url = settings.jobs_url.get_secret_value()
        files = (settings.cache_ca_file, settings.cache_cert_file, settings.cache_key_file)
        ca, cert, key = (str(file) if file and url.startswith("rediss") else None for file in files)
        return RedisStore.from_url(url, Access(ca_file=ca, cert_file=cert, key_file=key))
    return None if settings.jobs_folder is None else SqliteStore(settings.jobs_folder)
