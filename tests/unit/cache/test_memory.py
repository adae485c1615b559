"""What is particular to the cache in this process: which entries it forgets, and its size."""

import tracemalloc

import pytest

from app.cache.memory import MemoryCache


async def test_the_entry_that_was_used_least_recently_is_forgotten() -> None:
    cache = MemoryCache(max_entries=2)
    await cache.put_many({b"a": b"1", b"b": b"2"})
    await cache.get_many([b"a"])
    await cache.put_many({b"c": b"3"})
    assert await cache.get_many([b"a", b"b", b"c"]) == [b"1", None, b"3"]


async def test_storing_again_counts_as_use() -> None:
    cache = MemoryCache(max_entries=2)
    await cache.put_many({b"a": b"1", b"b": b"2"})
    await cache.put_many({b"a": b"4"})
    await cache.put_many({b"c": b"3"})
    assert await cache.get_many([b"a", b"b", b"c"]) == [b"4", None, b"3"]


@pytest.mark.parametrize(("size", "kept"), [(1, 1), (3, 3), (4, 3), (100, 3)])
async def test_never_more_entries_than_allowed(size: int, kept: int) -> None:
    cache = MemoryCache(max_entries=3)
    entries = {number.to_bytes(2, "big"): b"x" for number in range(size)}
    await cache.put_many(entries)
    found = await cache.get_many(list(entries))
    assert sum(value is not None for value in found) == kept
    assert all(found[-kept:]), "the newest are kept"


async def test_a_closed_cache_holds_nothing() -> None:
    cache = MemoryCache(max_entries=2)
    await cache.put_many({b"a": b"1"})
    await cache.close()
    assert await cache.get_many([b"a"]) == [None]


async def test_an_entry_takes_no_more_memory_than_documented() -> None:
    cache = MemoryCache(max_entries=100_000)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    await cache.put_many({number.to_bytes(16, "big"): number.to_bytes(12, "big") for number in range(20_000)})
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / 20_000 < 230
