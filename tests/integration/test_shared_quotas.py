"""Limits of API keys that several replicas count together, in a real Redis."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter

import pytest

from rerankd.cache import open_redis
from rerankd.cache.access import Access
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError, RateLimited
from rerankd.gateway.rates import Counted, Rates, RequestMeter
from rerankd.gateway.running import running_gateway
from rerankd.gateway.shared_allowance import SharedAllowance
from rerankd.gateway.shared_rates import SharedRates
from rerankd.telemetry.observer import Silent
from tests.fakes import RecordingObserver
from tests.redis_deployments import redis_cluster
from tests.registry_files import write_registry
from tests.servers import Server, redis_server

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@asynccontextmanager
async def _replicas(url: str, number: int = 2) -> AsyncIterator[list[SharedRates]]:
    """What counts in each replica, once all of them know of one another."""
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(number):
            store = SharedRates(open_redis(url, Access(), instead="shares"), RecordingObserver())
            await stack.enter_async_context(store.running())
            stores.append(store)
        yield stores


def _url(server: Server, database: int) -> str:
    return f"redis://127.0.0.1:{server.port}/{database}?probe_ms=50"


async def _reserved(allowance: Counted, tokens: int) -> bool:
    meter = RequestMeter(allowance, perf_counter)
    try:
        await meter.reserve(tokens)
    except RateLimited:
        return False
    meter.settle(tokens)
    return True


async def _spend(allowance: Counted, seconds: float) -> int:
    """Tokens that a client of one replica gets that asks all the time."""
    spent, end = 0, perf_counter() + seconds
    while perf_counter() < end:
        spent += 30 * await _reserved(allowance, 30)
        await asyncio.sleep(0.001)
    return spent


async def _spend_at_all(allowances: list[Counted], seconds: float) -> float:
    """Tokens a second that clients of all replicas get together."""
    started = perf_counter()
    spent = await asyncio.gather(*(_spend(allowance, seconds) for allowance in allowances))
    return sum(spent) / (perf_counter() - started)


async def test_two_replicas_give_together_what_one_would(redis: Server) -> None:
    rates = Rates(tokens_per_min=120_000)
    async with _replicas(_url(redis, 0)) as stores:
        allowances = [store.open("a", rates) for store in stores]
        assert await _reserved(allowances[0], 120_000), "the first minute's tokens, which may be used at once"
        assert await _spend_at_all(allowances, 1.5) == pytest.approx(2000, rel=0.05)


async def test_requests_that_come_at_the_same_moment_overdraw_by_one_of_them(redis: Server) -> None:
    async with _replicas(_url(redis, 1), 4) as stores:
        allowances = [store.open("a", Rates(tokens_per_min=1000)) for store in stores]
        taken = await asyncio.gather(*(_reserved(one, 300) for one in allowances for _ in range(10)))
        assert sum(taken) == 4


async def test_requests_a_second_are_counted_together(redis: Server) -> None:
    async with _replicas(_url(redis, 2)) as stores:
        allowances = [store.open("a", Rates(requests_per_s=20)) for store in stores]

        async def asked(allowance: Counted) -> int:
            try:
                await allowance.ask(now=perf_counter())
            except RateLimited:
                return 0
            return 1

        started = perf_counter()
        answers = await asyncio.gather(*(asked(one) for one in allowances for _ in range(30)))
        assert 20 <= sum(answers) <= 21 + 20 * (perf_counter() - started)


async def test_a_rate_that_fills_a_bucket_in_ages_is_shared_too(redis: Server) -> None:
    async with _replicas(_url(redis, 2)) as stores:
        first, second = (store.open("rare", Rates(requests_per_s=1e-20)) for store in stores)
        await first.ask(now=perf_counter())
        with pytest.raises(RateLimited):
            await second.ask(now=perf_counter())


async def test_what_a_request_turns_out_to_cost_is_settled_for_all(redis: Server) -> None:
    async with _replicas(_url(redis, 3)) as stores:
        one, other = (store.open("a", Rates(tokens_per_min=600)) for store in stores)
        meter = RequestMeter(one, perf_counter)
        await meter.reserve(600)
        with pytest.raises(RateLimited):
            await RequestMeter(other, perf_counter).reserve(1)
        meter.read(100)
        meter.compute(100)
        meter.settle(100)
        await _until(lambda: _reserved(other, 500))
        with pytest.raises(RateLimited) as refusal:
            await RequestMeter(one, perf_counter).reserve(1)
        assert 0 < refusal.value.retry_after_s < 60


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def test_longer_texts_than_estimated_are_refused_once_another_replica_has_used_the_quota_up(
    redis: Server,
) -> None:
    async with _replicas(_url(redis, 4)) as stores:
        one, other = (store.open("a", Rates(tokens_per_min=600)) for store in stores)
        meter = RequestMeter(one, perf_counter)
        await meter.reserve(100)
        assert await _reserved(other, 600)
        await one.ask(now=perf_counter())
        with pytest.raises(RateLimited):
            one.check_tokens(now=perf_counter())
        with pytest.raises(RateLimited):
            meter.read(200)


async def test_keys_and_their_limits_are_apart_and_redis_sees_no_name(redis: Server) -> None:
    async with _replicas(_url(redis, 5), 1) as (store,):
        assert await _reserved(store.open("a", Rates(tokens_per_min=600)), 600)
        assert not await _reserved(store.open("a", Rates(tokens_per_min=600)), 1)
        assert await _reserved(store.open("customer b", Rates(tokens_per_min=600)), 600)
        await store.open("customer b", Rates(requests_per_s=2)).ask(now=perf_counter())
        assert not isinstance(store.open("c", Rates()), SharedAllowance), "without limits there is nothing to count"


async def test_replicas_give_their_shares_while_redis_is_away_and_debit_them_when_it_is_back(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with _replicas(_url(server, 0)) as stores:
            one, other = allowances = [store.open("a", Rates(tokens_per_min=120_000)) for store in stores]

            async def all_are_known() -> bool:
                return all(store.replicas == 2 for store in stores)

            async def all_count_together() -> bool:
                for allowance in allowances:
                    await _reserved(allowance, 1)
                return not any(allowance._share for allowance in allowances if isinstance(allowance, SharedAllowance))

            await _until(all_are_known)
            assert await _reserved(one, 60_000)
            await other.ask(now=perf_counter())
            os.kill(server.process.pid, signal.SIGSTOP)
            for allowance in allowances:
                assert await _reserved(allowance, 29_000)
                assert await _reserved(allowance, 20_000), "which overdraws the share of half of what was left"
                assert not await _reserved(allowance, 1)
            assert all(store._observer.named("cache_failed") for store in stores)  # type: ignore[attr-defined]
            os.kill(server.process.pid, signal.SIGCONT)
            await _until(all_count_together)
            with pytest.raises(RateLimited) as refusal:
                await RequestMeter(other, perf_counter).reserve(1)
            assert 10 < refusal.value.retry_after_s < 20, "60,000 and twice 49,000 were given of 120,000"


async def test_a_cluster_counts_too(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        ports = ",".join(f"127.0.0.1:{node.port}" for node in cluster)
        async with _replicas(f"redis+cluster://{ports}") as stores:
            one, other = (store.open("a", Rates(tokens_per_min=600)) for store in stores)
            assert await _reserved(one, 600)
            assert not await _reserved(other, 1)


async def test_two_services_share_a_quota(redis: Server, tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[[key]]\nname = "a"\nkey = "secret-a"\ntokens_per_min = 600\n', encoding="utf-8")
    keys.chmod(0o600)
    registry = write_registry(
        tmp_path, [{"name": "t", "path": tiny_model, "engine": "onnx", "scorer": "cross-encoder"}]
    )
    settings = Settings(api_keys_file=keys, registry=registry, quota_store="redis", cache_url=_url(redis, 6))
    request = RerankRequest(query="one two", documents=[" ".join(["word"] * 60)] * 12)
    async with running_gateway(settings, Silent()) as one, running_gateway(settings, Silent()) as other:
        for gateway in (one, other):
            await gateway.service.model_named(None).settled()
        (result,) = await one.rerank([request], api_key="secret-a")
        assert result.tokens > 600
        with pytest.raises(RateLimited, match="600 tokens a minute"):
            await other.rerank([request], api_key="secret-a")


async def test_the_store_needs_a_redis(tiny_model: Path, tmp_path: Path) -> None:
    settings = Settings(quota_store="redis")
    with pytest.raises(ConfigError, match="RERANKD_CACHE_URL is memory://: name a Redis"):
        async with running_gateway(settings, Silent()):
            pass
