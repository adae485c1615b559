"""What is particular to the cache in this process: which entries it forgets, and its size."""

import json
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from rerankd.cache.memory import MemoryCache


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


async def test_an_owner_that_floods_the_cache_pushes_out_its_own_entries() -> None:
    cache = MemoryCache(max_entries=100)
    light = {number.to_bytes(16): b"light" for number in range(40)}
    await cache.put_many(light, owner="light")
    for number in range(100, 5000):
        await cache.put_many({number.to_bytes(16): b"x" * 12}, owner="heavy")
    assert await cache.get_many(list(light)) == [b"light"] * 40
    found = await cache.get_many([number.to_bytes(16) for number in range(4950, 5000)])
    assert all(found), "what is left is the other owner's"


@pytest.mark.parametrize(
    ("url", "entries"),
    [
        ("memory://", 128 * 2**20 // 384),
        ("memory://?max_mb=1", 2**20 // 384),
        ("memory://?max_entries=1000", 1000),
        ("memory://?max_entries=1000000", 1_000_000),
        ("memory://?max_entries=1000&max_mb=1", 1000),
        ("memory://?max_entries=1000000&max_mb=1", 2**20 // 384),
    ],
)
async def test_a_url_says_how_much_is_kept(url: str, entries: int) -> None:
    cache = MemoryCache.from_url(urlsplit(url))
    keys = [number.to_bytes(16) for number in range(min(entries, 3000) + 1)]
    await cache.put_many(dict.fromkeys(keys, bytes(16)))
    kept = len([value for value in await cache.get_many(keys) if value is not None])
    assert kept == min(entries, 3001)


_FILL = """
import asyncio, gc, json, resource, sys
from pathlib import Path
from urllib.parse import urlsplit
from rerankd.cache.memory import MemoryCache

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

async def fill(size, key_bytes):
    cache = MemoryCache.from_url(urlsplit("memory://?max_mb=32"))
    before = resident()
    stored = number = 0
    while stored < 3 * 2**25 // 2 or number < 300_000:
        stored += size + 200
        await cache.put_many({number.to_bytes(key_bytes): bytes(size)}, owner=f"key-{number % 3}")
        number += 1
    return resident() - before

print(json.dumps(asyncio.run(fill(int(sys.argv[1]), 16)) / 2**20))
"""


@pytest.mark.parametrize("size", [0, 1, 12, 600, 120_000], ids=["empty", "a byte", "a score", "a list", "a long list"])
def test_whatever_is_stored_the_memory_is_bounded(size: int) -> None:
    count = 300_000 if size < 1000 else 1000
    code = _FILL.replace("300_000", str(count))
    done = subprocess.run([sys.executable, "-c", code, str(size)], capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout) < 32 * 1.2
