"""One suite over every cache: in this process, a real Redis, and a real cluster."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from rerankd.cache import open_cache
from rerankd.cache.base import Cache
from tests.redis_deployments import redis_cluster
from tests.servers import redis_server


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield f"redis://127.0.0.1:{server.port}/0?timeout_ms=2000"


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_cluster(tmp_path_factory.mktemp("cluster"), masters=2) as servers:
        yield f"redis+cluster://127.0.0.1:{servers[0].port}?timeout_ms=2000"


@pytest.fixture(scope="module")
def memory_url() -> str:
    return "memory://"


@pytest.fixture(params=["memory", *(pytest.param(one, marks=pytest.mark.redis) for one in ("redis", "cluster"))])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    cache = open_cache(request.getfixturevalue(f"{request.param}_url"))
    assert cache is not None
    yield cache
    await cache.close()


def _key(test: str, number: int) -> bytes:
    return test.encode()[:8].ljust(8) + number.to_bytes(8, "big")


async def test_an_unknown_key_is_none(cache: Cache) -> None:
    assert await cache.get_many([_key("unknown", 1), _key("unknown", 2)]) == [None, None]


async def test_what_was_put_is_found_in_the_order_asked(cache: Cache) -> None:
    one, two, three = (_key("order", number) for number in range(3))
    await cache.put_many({one: b"1", three: b"3"})
    assert await cache.get_many([three, two, one, three]) == [b"3", None, b"1", b"3"]


async def test_putting_again_replaces(cache: Cache) -> None:
    key = _key("replace", 1)
    await cache.put_many({key: b"old"})
    await cache.put_many({key: b"new"})
    assert await cache.get_many([key]) == [b"new"]


async def test_nothing_asked_nothing_found(cache: Cache) -> None:
    await cache.put_many({})
    assert await cache.get_many([]) == []


@pytest.mark.parametrize("value", [b"", b"\0", b"\r\n", bytes(range(256)), b"$3\r\nfoo\r\n"])
async def test_any_bytes_come_back_as_they_were(cache: Cache, value: bytes) -> None:
    key = bytes(range(240, 256))
    await cache.put_many({key: value})
    assert await cache.get_many([key]) == [value]


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2500])
async def test_many_at_a_time(cache: Cache, size: int) -> None:
    entries = {_key("many", number): number.to_bytes(12, "big") for number in range(size)}
    await cache.put_many(entries)
    assert await cache.get_many(list(entries)) == list(entries.values())


async def test_many_callers_at_a_time_each_find_their_own(cache: Cache) -> None:
    async def caller(number: int) -> None:
        keys = [_key(f"call{number}", position) for position in range(20)]
        entries = {key: f"{number}:{position}".encode() for position, key in enumerate(keys)}
        for _ in range(3):
            await cache.put_many(entries)
            assert await cache.get_many(keys) == list(entries.values())

    await asyncio.gather(*(caller(number) for number in range(64)))


async def test_a_caller_that_goes_away_does_not_disturb_the_others(cache: Cache) -> None:
    entries = {_key("away", number): str(number).encode() for number in range(200)}
    await cache.put_many(entries)

    async def caller(number: int, *, patience: int) -> None:
        key = list(entries)[number]
        asking = asyncio.ensure_future(cache.get_many([key]))
        for _ in range(patience):
            await asyncio.sleep(0)
        if patience < 30:
            asking.cancel()
        found = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError) or found[0] == [entries[key]]

    for _ in range(5):
        await asyncio.gather(*(caller(number, patience=number % 40) for number in range(200)))


async def test_closing_twice_is_harmless(cache: Cache) -> None:
    await cache.close()
    await cache.close()
