"""The ways in which Redis is set up, with real servers: a cluster, Sentinels, TLS with a CA of its own, a socket."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import pytest
from redis import Redis

from loadtest.servers import Server
from rerankd.cache import connect_cache
from rerankd.cache.access import Access
from rerankd.cache.base import Cache
from rerankd.cache.redis import RedisCache
from rerankd.errors import CacheUnavailable, ConfigError
from tests.redis_deployments import Certificates, certificates, redis_cluster, redis_sentinels, tls_redis
from tests.servers import redis_server

pytestmark = pytest.mark.redis

_ENTRIES = {number.to_bytes(16, "little"): str(number).encode() for number in range(1500)}
_SLOW = "timeout_ms=2000&probe_ms=50"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


def _cluster_url(servers: list[Server], parameters: str = _SLOW) -> str:
    return f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in servers)}?{parameters}"


async def _opened(url: str, access: Access | None = None) -> RedisCache:
    cache = await connect_cache(url, access=access or Access())
    assert isinstance(cache, RedisCache)
    return cache


async def _holds_entries(cache: Cache) -> None:
    await cache.put_many(_ENTRIES)
    keys = list(_ENTRIES)
    assert await cache.get_many([*keys, b"unknown"]) == [*_ENTRIES.values(), None]
    await cache.close()


async def _until_used(cache: RedisCache, *, seconds: float = 15.0) -> None:
    """Until a request reaches Redis again, through whatever fails before."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        try:
            await cache.put_many({b"k" * 16: b"new"})
        except CacheUnavailable:
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError(f"not back within {seconds} s")


async def test_a_cluster_is_found_from_any_of_its_servers_and_shares_the_entries_evenly(cluster: list[Server]) -> None:
    for server in cluster:
        with Redis(port=server.port) as client:
            client.flushall()
    await _holds_entries(await _opened(_cluster_url([cluster[2]])))
    for server in cluster:
        with Redis(port=server.port) as client:
            assert 400 < client.dbsize() < 600
            some = next(client.scan_iter())
            assert 0 < client.ttl(some) <= 7 * 24 * 3600


async def test_slots_that_move_are_followed(cluster: list[Server]) -> None:
    cache = await _opened(_cluster_url(cluster))
    await cache.put_many(_ENTRIES)
    with Redis(port=cluster[0].port) as source, Redis(port=cluster[1].port) as target:
        here, there = (client.execute_command("CLUSTER", "MYID") for client in (source, target))
        moved = next(source.scan_iter())
        slot = source.execute_command("CLUSTER", "KEYSLOT", moved)
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        names = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        source.migrate("127.0.0.1", cluster[1].port, names, 0, 1000)
        for client in (target, source):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", there)
    assert await cache.get_many(list(_ENTRIES)) == list(_ENTRIES.values())
    await cache.close()


async def test_a_cluster_that_lost_a_server_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as servers:
        cache = await _opened(_cluster_url(servers, "timeout_ms=500&probe_ms=50"))
        await cache.put_many(_ENTRIES)
        servers[1].process.send_signal(signal.SIGSTOP)
        while not cache.is_open:
            with pytest.raises(CacheUnavailable):
                await cache.get_many(list(_ENTRIES))
        servers[1].process.send_signal(signal.SIGCONT)
        await _until_used(cache)
        assert await cache.get_many(list(_ENTRIES)) == list(_ENTRIES.values())
        await cache.close()


async def test_a_redis_that_is_no_cluster_refuses_the_start_as_one(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, pytest.raises(ConfigError, match="is not part of a Redis Cluster"):
        await connect_cache(_cluster_url([server]))


async def test_a_cluster_with_another_password_refuses_the_start(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, masters=1) as servers, Redis(port=servers[0].port) as client:
        client.config_set("requirepass", "right")
        with pytest.raises(ConfigError, match="refuses the user, the password") as refused:
            await connect_cache(_cluster_url(servers), access=Access(password="s3cret"))
        assert "s3cret" not in str(refused.value)
        await _holds_entries(await _opened(_cluster_url(servers), Access(password="right")))


async def test_a_cluster_that_is_away_is_waited_for() -> None:
    cache = await _opened("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(CacheUnavailable):
        await cache.get_many([b"key"])
    await cache.close()


async def test_after_a_failover_the_new_master_is_used(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path) as watched:
        watched.sentinels[0].process.send_signal(signal.SIGSTOP)
        cache = await _opened(f"{watched.url}?timeout_ms=500&probe_ms=50")
        watched.sentinels[0].process.send_signal(signal.SIGCONT)
        await cache.put_many(_ENTRIES)
        with Redis(port=watched.replica.port) as client, Redis(port=watched.master.port) as master:
            assert master.wait(1, 5000) == 1, "the replica has them too"
            watched.master.process.kill()
            watched.master.process.wait()
            await _until_used(cache)
            assert client.role()[0] == b"master"
            assert await cache.get_many(list(_ENTRIES)) == list(_ENTRIES.values())
        await cache.close()


async def test_sentinels_with_a_password_and_a_wrong_name(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path, sentinels=1, password="right") as watched:
        right = Access(password="right", sentinel_password="right")
        await _holds_entries(await _opened(f"{watched.url}?{_SLOW}", right))
        with pytest.raises(ConfigError, match="watch no master of that name"):
            await connect_cache(watched.url.replace("/scores/", "/stores/"), access=right)
        for wrong in (Access(password="s3cret", sentinel_password="right"), Access(password="right")):
            with pytest.raises(ConfigError, match="refuses the user, the password") as refused:
                await connect_cache(watched.url, access=wrong)
            assert "s3cret" not in str(refused.value)


async def test_tls_trusts_the_ca_that_is_named_and_no_other(tmp_path: Path, files: Certificates) -> None:
    with tls_redis(tmp_path, files) as server:
        url = f"rediss://127.0.0.1:{server.port}?{_SLOW}"
        await _holds_entries(await _opened(url, Access(ca_file=str(files.ca))))
        with pytest.raises(ConfigError, match="name the CA's in RERANKD_CACHE_CA_FILE"):
            await connect_cache(url)
        with pytest.raises(ConfigError, match="certificate is for another host"):
            await connect_cache(url.replace("127.0.0.1", "localhost"), access=Access(ca_file=str(files.ca)))


async def _asked_once(url: str, access: Access) -> None:
    cache = await _opened(url, access)
    try:
        await cache.get_many([b"key"])
    finally:
        await cache.close()


async def test_a_redis_that_asks_for_a_certificate_gets_ours(tmp_path: Path, files: Certificates) -> None:
    with tls_redis(tmp_path, files, asks_clients=True) as server:
        url = f"rediss://127.0.0.1:{server.port}?{_SLOW}"
        both = Access(ca_file=str(files.ca), cert_file=str(files.cert), key_file=str(files.key))
        await _holds_entries(await _opened(url, both))
        # The server's alert comes before the first answer that is awaited, or behind it.
        with pytest.raises((CacheUnavailable, ConfigError), match=r"Redis did not answer|asks for a certificate"):
            await _asked_once(url, Access(ca_file=str(files.ca)))


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(tmp_path, "--unixsocket", str(path)) as server:
        await _holds_entries(await _opened(f"redis+unix://{path}?db=3&{_SLOW}"))
        with Redis(port=server.port, db=3) as client:
            assert client.get("rerankd:" + next(iter(_ENTRIES)).hex()) == b"0"
        with pytest.raises(ConfigError, match="refuses the user, the password"):
            await connect_cache(f"redis+unix://:s3cret@{path}")
