"""A real Redis behind the service: shared scores, no text in it, and no request that suffers when it is ill."""

import asyncio
import logging
import os
import signal
import socket
import statistics
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from time import perf_counter

import pytest
from pydantic import SecretStr
from redis import Redis

from loadtest.servers import free_port, running, wait
from rerankd.cache import connect_cache, open_cache
from rerankd.cache.redis import RedisCache
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions
from rerankd.errors import CacheUnavailable, ConfigError
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.logs import request_id
from rerankd.telemetry.metrics import PrometheusObserver
from tests.fakes import ArithmeticEngine, FakeService, RecordingObserver, score_of
from tests.garbage import kept_garbage, of_ours
from tests.registry_files import write_registry
from tests.requirements import require_program
from tests.servers import Server, redis_server

pytestmark = pytest.mark.redis

_QUERY = "capital of France"
_DOCUMENTS = ("Paris is the capital of France", "Berlin is in Germany", "list.sort() sorts in place")
_FAST = "timeout_ms=50&probe_ms=50"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with redis_server(tmp_path) as server:
        yield server
        server.process.send_signal(signal.SIGCONT)


def _client(redis: Server) -> Redis:
    return Redis(port=redis.port)


def _keys(redis: Server) -> list[bytes]:
    with _client(redis) as client:
        return sorted(client.scan_iter(count=1000))


class _Real:
    """A service over the tiny model, as the command line builds it, and its metrics."""

    def __init__(self, service: RerankService, observer: PrometheusObserver) -> None:
        self.service = service
        self.observer = observer

    async def rerank(
        self, *documents: str, query: str = _QUERY, model: str = "one", max_tokens_per_doc: int | None = None
    ) -> RerankResult:
        return await self.service.rerank(
            RerankRequest(
                query=query,
                documents=documents,
                model=model,
                options=ScoreOptions(max_tokens_per_doc=max_tokens_per_doc),
            )
        )

    @property
    def pairs_scored(self) -> float:
        """Pairs that reached a model, canaries left out."""
        names = ("one", "two")
        return sum(self.observer.registry.get_sample_value("rerank_batch_pairs_sum", {"model": n}) or 0 for n in names)


@asynccontextmanager
async def _real_service(
    folder: Path, model: Path, redis: Server, parameters: str = "ttl_s=100", *, secret: SecretStr | None = None
) -> AsyncIterator[_Real]:
    registry = write_registry(folder, [{"name": name, "path": model} for name in ("one", "two")])
    url = f"redis://127.0.0.1:{redis.port}/0?{parameters}"
    settings = Settings(registry=registry, cache_url=SecretStr(url), cache_secret=secret)
    observer = PrometheusObserver()
    async with running_service(settings, observer) as service:
        for served in service.models:
            await served.settled()
        yield _Real(service, observer)


async def test_the_same_request_again_is_answered_from_redis_alone(
    tmp_path: Path, tiny_model: Path, redis: Server
) -> None:
    async with _real_service(tmp_path, tiny_model, redis) as first:
        fresh = await first.rerank(*_DOCUMENTS)
        scored = first.pairs_scored
        again = await first.rerank(*_DOCUMENTS)
        assert first.pairs_scored == scored
    async with _real_service(tmp_path, tiny_model, redis) as replica:
        scored = replica.pairs_scored
        elsewhere = await replica.rerank(*_DOCUMENTS)
        assert replica.pairs_scored == scored, "another replica finds what the first one stored"
    assert (fresh.cached, again.cached, elsewhere.cached) == (0, 3, 3)
    assert fresh.results == again.results == elsewhere.results
    assert fresh.tokens == again.tokens


async def test_of_overlapping_requests_only_the_new_pairs_reach_the_model(
    tmp_path: Path, tiny_model: Path, redis: Server
) -> None:
    async with _real_service(tmp_path, tiny_model, redis) as real:
        await real.rerank(*_DOCUMENTS)
        scored = real.pairs_scored
        result = await real.rerank("new", _DOCUMENTS[2], "newer", _DOCUMENTS[0], "new")
        assert real.pairs_scored - scored == 2
        assert result.cached == 3
        hits = real.observer.registry.get_sample_value("rerank_cache_pairs_total", {"result": "hit"})
        misses = real.observer.registry.get_sample_value("rerank_cache_pairs_total", {"result": "miss"})
        assert (hits, misses) == (3, 5)


async def test_keys_differ_by_model_query_and_length_and_expire(
    tmp_path: Path, tiny_model: Path, redis: Server
) -> None:
    async with _real_service(tmp_path, tiny_model, redis) as real:
        await real.rerank("a")
        await real.rerank("a", model="two")
        await real.rerank("a", query="another")
        await real.rerank("a", max_tokens_per_doc=3)
    keys = _keys(redis)
    assert len(keys) == 4
    with _client(redis) as client:
        assert all(90 < int(client.ttl(key)) <= 100 for key in keys)


async def test_a_foreign_entry_in_redis_is_ignored_where_entries_are_signed(
    tmp_path: Path, tiny_model: Path, redis: Server
) -> None:
    secret = SecretStr("a secret of the operator's")
    forged = b"pr01" + struct.pack("<fII", 99.0, 1, 0)
    async with _real_service(tmp_path, tiny_model, redis, secret=secret) as real:
        fresh = await real.rerank(*_DOCUMENTS)
        assert (await real.rerank(*_DOCUMENTS)).cached == 3
        with _client(redis) as client:
            stored = {key: client.get(key) for key in _keys(redis)}
            for key, value in stored.items():
                client.set(key, forged + bytes(value)[len(forged) :])
        again = await real.rerank(*_DOCUMENTS)
        assert (again.cached, again.results) == (0, fresh.results)
        refused = real.observer.registry.get_sample_value("rerank_cache_errors_total", {"operation": "verify"})
        assert refused == 3
        assert (await real.rerank(*_DOCUMENTS)).cached == 3, "they were written again"
    async with _real_service(tmp_path, tiny_model, redis) as unsigned:
        assert (await unsigned.rerank(*_DOCUMENTS)).cached == 0, "names need the secret too"
        with _client(redis) as client:
            for key in set(_keys(redis)) - stored.keys():
                client.set(key, forged)
        believed = await unsigned.rerank(*_DOCUMENTS)
        assert [document.value for document in believed.results] == [99.0] * 3, "what the secret is for"


async def test_redis_holds_no_text(tmp_path: Path, tiny_model: Path, redis: Server) -> None:
    words = ["xylophone", "quicksilver", "Zanzibar"]
    async with _real_service(tmp_path, tiny_model, redis) as real:
        await real.rerank(*(f"{word} {word * 3} text" for word in words), query="thunderclap marmalade")
    with _client(redis) as client:
        keys = _keys(redis)
        assert len(keys) == 3
        stored = b"".join(key + client.dump(key) + client.get(key) for key in keys)
    assert len(stored) < 400
    for word in [*words, "thunderclap", "marmalade", "one", "tiny"]:
        assert word.encode().lower() not in stored.lower()


@pytest.mark.parametrize("value", [b"", b"not one of ours", b"\xff" * 12, "a list"])
async def test_what_others_wrote_under_our_keys_is_a_miss(redis: Server, value: bytes | str) -> None:
    async with _loaded_service(redis) as (service, _):
        await _rerank(service, "a")
        (key,) = _keys(redis)
        with _client(redis) as client:
            client.delete(key)
            client.lpush(key, "x") if value == "a list" else client.set(key, value)
        assert (await _rerank(service, "a")).results[0].value == score_of("query", "a")


@asynccontextmanager
async def _loaded_service(
    redis: Server | None, *, parameters: str = _FAST, seconds_per_pass: float = 0.0
) -> AsyncIterator[tuple[RerankService, RedisCache | None]]:
    """A service with an engine of a known cost; without Redis, one without a cache."""
    cache = open_cache(f"redis://127.0.0.1:{redis.port}/0?{parameters}") if redis else None
    assert cache is None or isinstance(cache, RedisCache)
    engine = ArithmeticEngine(workers=2, pairs=32, seconds_per_pass=seconds_per_pass)
    async with AsyncExitStack() as stack:
        if cache is not None:
            stack.push_async_callback(cache.close)
        yield await stack.enter_async_context(FakeService(engine=engine, cache=cache).running()), cache


async def _rerank(service: RerankService, *documents: str) -> RerankResult:
    return await service.rerank(RerankRequest(query="query", documents=documents))


_numbers = count()


async def _load(service: RerankService, *, clients: int = 32, requests: int = 12, documents: int = 4) -> list[float]:
    """The latencies of a closed loop of clients with new documents each time; every answer is checked."""
    latencies: list[float] = []

    async def client() -> None:
        for _ in range(requests):
            texts = [f"document {next(_numbers)}" for _ in range(documents)]
            started = perf_counter()
            result = await _rerank(service, *texts)
            latencies.append(perf_counter() - started)
            _check(result, texts)

    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies


def _check(result: RerankResult, texts: Sequence[str]) -> None:
    assert sorted(ranked.index for ranked in result.results) == list(range(len(texts)))
    for ranked in result.results:
        assert ranked.value == score_of("query", texts[ranked.index])


def _kill(server: Server) -> None:
    server.process.kill()
    server.process.wait()


def _hang(server: Server) -> None:
    server.process.send_signal(signal.SIGSTOP)


@pytest.mark.timed
@pytest.mark.parametrize("break_it", [_kill, _hang])
async def test_redis_that_dies_or_hangs_mid_load_fails_no_request_and_slows_none_down(
    redis: Server, break_it: Callable[[Server], None]
) -> None:
    async with (
        _loaded_service(None, seconds_per_pass=0.01) as (without_cache, _),
        _loaded_service(redis, seconds_per_pass=0.01) as (service, cache),
    ):
        assert cache is not None
        loading = asyncio.ensure_future(_load(service, requests=6))
        await asyncio.sleep(0.05)
        break_it(redis)
        await loading
        await _load(service, requests=1)
        assert cache.is_open
        medians: list[tuple[float, float]] = []
        for _ in range(6):
            reference = statistics.median(await _load(without_cache, requests=3))
            medians.append((reference, statistics.median(await _load(service, requests=3))))
        assert cache.is_open
    # Measured properly it is within 10 % (docs/benchmarks.md). Here the machine may be busy with other things, so the
    # quietest moments of both are compared.
    without, ill = (min(values) for values in zip(*medians, strict=True))
    assert ill < 1.5 * without


@asynccontextmanager
async def _restarted(server: Server, folder: Path) -> AsyncIterator[None]:
    _kill(server)
    await asyncio.sleep(0.2)
    with redis_server(folder, port=server.port):
        yield


@asynccontextmanager
async def _continued(server: Server, _folder: Path) -> AsyncIterator[None]:
    _hang(server)
    await asyncio.sleep(0.4)
    server.process.send_signal(signal.SIGCONT)
    yield


async def _until(true: Callable[[], bool | Awaitable[bool]], *, seconds: float = 5.0) -> None:
    end = perf_counter() + seconds
    while perf_counter() < end:
        answer = true()
        if answer is True or (answer is not False and await answer):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not true within {seconds} s")


@pytest.mark.parametrize("interrupted", [_restarted, _continued])
async def test_when_redis_is_back_it_is_used_again_at_once_and_no_answer_is_another_ones(
    redis: Server, tmp_path: Path, interrupted: Callable[[Server, Path], "AsyncIterator[None]"]
) -> None:
    async with _loaded_service(redis) as (service, cache):
        assert cache is not None
        warm = asyncio.ensure_future(_load(service, requests=40))
        await asyncio.sleep(0.05)
        async with interrupted(redis, tmp_path):  # type: ignore[attr-defined]
            await warm
            await _load(service, requests=2)
            await _until(lambda: not cache.is_open)
            documents = [f"again {number}" for number in range(40)]
            _check(await _rerank(service, *documents), documents)
            answers = await asyncio.gather(*(_rerank(service, *documents) for _ in range(64)))
            for answer in answers:
                _check(answer, documents)
            assert [answer.cached for answer in answers] == [40] * 64
            assert not cache.is_open


async def test_what_the_probe_logs_belongs_to_no_request(redis: Server) -> None:
    told: dict[str, str | None] = {}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told[record.getMessage()] = request_id.get()

    listener = Listener()
    logger = logging.getLogger("rerankd.cache.guarded")
    cache = open_cache(f"redis://127.0.0.1:{redis.port}?timeout_ms=20&probe_ms=20")
    assert isinstance(cache, RedisCache)
    logger.addHandler(listener)
    asked = request_id.set("the first one that failed")
    try:
        _hang(redis)
        while not cache.is_open:
            with suppress(CacheUnavailable):
                await cache.get_many([b"key"])
        redis.process.send_signal(signal.SIGCONT)
        await _until(lambda: not cache.is_open)
        assert told["Redis is back"] is None
    finally:
        request_id.reset(asked)
        logger.removeHandler(listener)
        redis.process.send_signal(signal.SIGCONT)
        await cache.close()


async def test_more_requests_at_a_time_than_connections_all_get_their_turn(redis: Server) -> None:
    async with _loaded_service(redis, parameters="max_connections=4&timeout_ms=2000") as (service, cache):
        assert cache is not None
        await _load(service, clients=64, requests=3)
        with _client(redis) as client:
            assert len(client.client_list()) <= 6
        documents = [f"turn {number}" for number in range(20)]
        await _rerank(service, *documents)
        answers = await asyncio.gather(*(_rerank(service, *documents) for _ in range(100)))
        assert {answer.cached for answer in answers} == {20}


async def test_a_busy_event_loop_is_not_taken_for_a_slow_redis(redis: Server) -> None:
    observer = RecordingObserver()
    cache = open_cache(f"redis://127.0.0.1:{redis.port}/0?timeout_ms=50")
    assert isinstance(cache, RedisCache)
    async with FakeService(observer=observer, cache=cache).running() as service:
        await _rerank(service, "a")
        for _ in range(5):
            calls = [asyncio.ensure_future(_rerank(service, "a", "b")) for _ in range(8)]
            for _ in range(4):
                await asyncio.sleep(0)
                _block_the_loop(0.08)
            await asyncio.gather(*calls)
        assert observer.named("cache_failed") == []
        assert not cache.is_open
    await cache.close()


def _block_the_loop(seconds: float) -> None:
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


async def test_connections_that_the_server_closed_are_replaced_unnoticed(redis: Server) -> None:
    observer = RecordingObserver()
    cache = open_cache(f"redis://127.0.0.1:{redis.port}/0?timeout_ms=500")
    assert isinstance(cache, RedisCache)
    async with FakeService(observer=observer, cache=cache).running() as service:
        await asyncio.gather(*(_rerank(service, "a") for _ in range(16)))
        with _client(redis) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.05)
        await asyncio.gather(*(_rerank(service, "a") for _ in range(16)))
        assert observer.named("cache_failed") == []
    await cache.close()


async def test_a_full_redis_still_answers_and_no_request_fails(redis: Server, caplog: pytest.LogCaptureFixture) -> None:
    async with _loaded_service(redis) as (service, cache):
        assert cache is not None
        await _rerank(service, "known")
        with _client(redis) as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 1)
        await _load(service, requests=4)
        assert (await _rerank(service, "known")).cached == 1, "reads go on"
        assert (await _rerank(service, "other")).cached == 0
        assert (await _rerank(service, "other")).cached == 0
        assert not cache.is_open
        assert len([record for record in caplog.records if "refuses" in record.message]) == 1
        with _client(redis) as client:
            client.config_set("maxmemory", 0)
        await _rerank(service, "other")
        assert (await _rerank(service, "other")).cached == 1


async def test_a_refused_write_leaves_no_cycle(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "1") as server:
        cache = open_cache(f"redis://127.0.0.1:{server.port}")
        assert cache is not None

        async def refused() -> None:
            with pytest.raises(CacheUnavailable, match="Redis answered"):
                await cache.put_many({b"key": b"value"})

        await refused()
        with kept_garbage() as garbage:
            await refused()
        assert sorted(of_ours(garbage)) == []
        await cache.close()


async def test_a_redis_that_was_never_there_is_no_reason_not_to_answer(tmp_path: Path) -> None:
    nobody = Server(port=1, process=None, log=tmp_path)  # type: ignore[arg-type]
    async with _loaded_service(nobody) as (service, cache):
        assert cache is not None
        await _load(service, requests=3)
        assert cache.is_open


def _listens(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    return True


@contextmanager
def _odd_redis(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """One that does not answer a ping of everybody."""
    port = port or free_port()
    command = [require_program("redis-server"), *options, "--port", str(port), "--save", "", "--dir", str(folder)]
    with running(command, port, folder / f"redis-{port}.log", {}) as server:
        wait(server, lambda: _listens(port))
        yield server


_CLUSTER = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")


@pytest.mark.parametrize(
    ("options", "url", "reason"),
    [
        (_CLUSTER, "redis://127.0.0.1:{}", "is part of a Redis Cluster; write redis+cluster://"),
        (_CLUSTER, "redis://127.0.0.1:{}/1", "is part of a Redis Cluster; write redis+cluster://"),
        (["--requirepass", "right"], "redis://127.0.0.1:{}", "refuses the user, the password"),
        (["--requirepass", "right"], "redis://:s3cret@127.0.0.1:{}", "refuses the user, the password"),
        ([], "redis://:s3cret@127.0.0.1:{}", "refuses the user, the password"),
        ([], "redis://u:s3cret@127.0.0.1:{}", "refuses the user, the password"),
        (
            ["--user", "default", "on", "nopass", "~*", "+@connection", "+ping", "+mget"],
            "redis://127.0.0.1:{}",
            "MGET, EVAL and SET on rerankd:",
        ),
        (["--rename-command", "AUTH", ""], "redis://:s3cret@127.0.0.1:{}", "lacks a command"),
        (["--rename-command", "EVAL", ""], "redis://127.0.0.1:{}", "lacks a command, as a Sentinel does"),
        ([], "redis://127.0.0.1:{}/99", "has no such database"),
    ],
)
async def test_a_redis_that_can_never_be_used_refuses_the_start(
    tmp_path: Path, options: Sequence[str], url: str, reason: str
) -> None:
    with _odd_redis(tmp_path, *options) as server, pytest.raises(ConfigError) as refused:
        await connect_cache(url.format(server.port))
    assert str(refused.value).startswith("RERANKD_CACHE_URL: that ")
    assert reason in str(refused.value)
    assert "s3cret" not in str(refused.value)


async def test_a_sentinel_refuses_the_start(tmp_path: Path) -> None:
    configuration = tmp_path / "sentinel.conf"
    configuration.touch()
    with (
        _odd_redis(tmp_path, str(configuration), "--sentinel") as server,
        pytest.raises(ConfigError, match="lacks a command, as a Sentinel does"),
    ):
        await connect_cache(f"redis://127.0.0.1:{server.port}")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
async def test_what_is_no_redis_refuses_the_start(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match="what answers there is not Redis"):
            await connect_cache(f"redis://127.0.0.1:{port}")


@pytest.mark.parametrize("options", [["--replicaof", "127.0.0.1 1"], ["--maxmemory", "1"]], ids=["replica", "full"])
async def test_a_redis_that_may_come_round_is_told_in_the_log_alone(
    tmp_path: Path, options: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path, *options) as server:
        cache = await connect_cache(f"redis://127.0.0.1:{server.port}")
        assert cache is not None
        assert "Redis cannot be used now, scores are computed instead" in caplog.text
        assert await cache.get_many([b"key"]) == [None]
        await cache.close()


async def test_a_redis_that_is_away_is_told_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    cache = await connect_cache("redis://:s3cret@127.0.0.1:1")
    assert cache is not None
    assert "Redis cannot be used now, scores are computed instead: ConnectionError" in caplog.text
    assert "s3cret" not in caplog.text
    await cache.close()


async def test_a_password_that_changes_is_told_as_an_error_and_forgiven_when_it_is_right_again(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with _loaded_service(redis) as (service, cache):
        assert cache is not None
        with _client(redis) as client:
            client.config_set("requirepass", "other")
            client.client_kill_filter(_type="normal", skipme=True)
            for number in range(4):
                await _rerank(service, f"text {number}")
            assert cache.is_open
            (told,) = [record for record in caplog.records if record.name == "rerankd.cache.guarded"]
            assert "the cache cannot be used, scores are computed instead: that Redis refuses" in told.getMessage()
            client.config_set("requirepass", "")
        await _until(lambda: not cache.is_open)
        await _rerank(service, "text 9")
        assert (await _rerank(service, "text 9")).cached == 1


async def test_a_cluster_that_takes_the_place_of_a_redis_is_not_tried_again_with_every_request(
    tmp_path: Path, redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    port = redis.port
    async with _loaded_service(redis) as (service, cache):
        assert cache is not None
        redis.process.kill()
        redis.process.wait()
        (tmp_path / "cluster").mkdir()
        with _odd_redis(tmp_path / "cluster", *_CLUSTER, port=port):
            for number in range(8):
                await _rerank(service, f"text {number}")
                await asyncio.sleep(0.05)
            assert cache.is_open, "a cluster answers pings, and nothing else that is of use"
            assert "is back" not in caplog.text
            assert "is part of a Redis Cluster" in caplog.text


@pytest.mark.timed
async def test_closing_while_redis_is_away_ends_the_probe(redis: Server) -> None:
    async with _loaded_service(redis) as (service, cache):
        assert cache is not None
        _hang(redis)
        await _load(service, requests=2)
        assert cache.is_open
        started = perf_counter()
        await cache.close()
        assert perf_counter() - started < 0.5
    os.kill(redis.process.pid, signal.SIGCONT)
