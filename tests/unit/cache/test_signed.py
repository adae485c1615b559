"""Entries that somebody else wrote are misses, and what was asked cannot be told from names without the secret."""

import pytest

from rerankd.cache import open_cache
from rerankd.cache.keys import pair_keys
from rerankd.cache.redis import RedisCache
from rerankd.cache.signed import SignedCache
from rerankd.errors import CacheUnavailable, ConfigError
from tests.fakes import RecordingObserver, ScriptedCache

_SECRET = "a secret of the operator's"
_ENTRIES = {number.to_bytes(16): number.to_bytes(12) for number in range(3)}


class _Setup:
    def __init__(self) -> None:
        self.inner, self.observer = ScriptedCache(), RecordingObserver()
        self.cache = self.with_secret(_SECRET)

    def with_secret(self, secret: str) -> SignedCache:
        return SignedCache(self.inner, secret=secret, observer=self.observer)

    @property
    def refused(self) -> int:
        return len([fact for fact in self.observer.named("cache_failed") if fact["operation"] == "verify"])


@pytest.fixture
async def setup() -> _Setup:
    setup = _Setup()
    await setup.cache.put_many(_ENTRIES)
    return setup


async def test_every_process_with_the_secret_finds_an_entry(setup: _Setup) -> None:
    assert await setup.with_secret(_SECRET).get_many(list(_ENTRIES)) == list(_ENTRIES.values())
    assert await setup.cache.get_many([bytes(16), b"x" * 16]) == [bytes(12), None]
    assert setup.refused == 0


async def test_another_secret_finds_nothing_and_is_no_alarm(setup: _Setup) -> None:
    assert await setup.with_secret("another secret").get_many(list(_ENTRIES)) == [None] * 3
    assert setup.refused == 0


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        bytes(12),
        bytes(15),
        bytes(28),
        b"x" * 500,
    ],
)
async def test_an_entry_that_was_not_signed_is_a_miss_and_counted(setup: _Setup, forged: bytes) -> None:
    first = next(iter(setup.inner.entries))
    setup.inner.entries[first] = forged
    assert await setup.cache.get_many(list(_ENTRIES)) == [None, *list(_ENTRIES.values())[1:]]
    assert setup.refused == 1


@pytest.mark.parametrize("position", [0, 5, 11, 12, 27])
async def test_every_byte_of_an_entry_counts(setup: _Setup, position: int) -> None:
    first, stored = next(iter(setup.inner.entries.items()))
    setup.inner.entries[first] = stored[:position] + bytes([stored[position] ^ 1]) + stored[position + 1 :]
    assert (await setup.cache.get_many(list(_ENTRIES)))[0] is None
    assert setup.refused == 1


async def test_an_entry_holds_under_its_own_name_only(setup: _Setup) -> None:
    one, other, _ = setup.inner.entries
    setup.inner.entries[one] = setup.inner.entries[other]
    assert (await setup.cache.get_many(list(_ENTRIES)))[0] is None
    assert setup.refused == 1


async def test_names_cannot_be_made_without_the_secret(setup: _Setup) -> None:
    (key,) = pair_keys("fingerprint", "query", ["document"])
    await setup.cache.put_many({key: bytes(12)})
    assert key not in setup.inner.entries
    assert all(len(name) == 16 for name in setup.inner.entries)


async def test_a_failing_cache_stays_one(setup: _Setup) -> None:
    setup.inner.failing = True
    with pytest.raises(CacheUnavailable):
        await setup.cache.get_many([bytes(16)])
    with pytest.raises(CacheUnavailable):
        await setup.cache.put_many(_ENTRIES)
    await setup.cache.close()
    assert setup.inner.closed


@pytest.mark.parametrize("url", ["memory://", "none://"])
def test_a_secret_for_what_nobody_else_can_reach_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="RERANKD_CACHE_SECRET signs what is kept in Redis") as refused:
        open_cache(url, secret=_SECRET)
    assert _SECRET not in str(refused.value)


async def test_a_secret_signs_what_is_kept_in_redis() -> None:
    assert isinstance(open_cache("redis://127.0.0.1:1/0", secret=_SECRET), SignedCache)
    assert isinstance(open_cache("redis://127.0.0.1:1/0"), RedisCache)
