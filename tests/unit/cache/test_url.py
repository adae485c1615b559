"""Cache URLs: every mistake is named, none is guessed away."""

from urllib.parse import urlsplit

import pytest

from app.cache import open_cache
from app.cache.memory import MemoryCache
from app.cache.redis import RedisCache
from app.cache.url import read_parameters
from app.errors import ConfigError

_DEFAULTS = {"ttl_s": 60, "timeout_ms": 50}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"ttl_s": 60, "timeout_ms": 50}),
        ("ttl_s=1", {"ttl_s": 1, "timeout_ms": 50}),
        ("ttl_s=1&timeout_ms=7", {"ttl_s": 1, "timeout_ms": 7}),
        ("ttl_s=1&ttl_s=2", {"ttl_s": 2, "timeout_ms": 50}),
    ],
)
def test_parameters_over_defaults(query: str, expected: dict[str, int]) -> None:
    assert read_parameters(urlsplit(f"redis://host?{query}"), _DEFAULTS) == expected


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "", "many", "1e3", "²"])
def test_a_value_that_is_no_positive_whole_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"ttl_s=.* is no positive whole number"):
        read_parameters(urlsplit(f"redis://host?ttl_s={value}"), _DEFAULTS)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("memcached://host", "unknown scheme 'memcached'; known: memory://, redis://, rediss://, none://"),
        ("", "unknown scheme ''"),
        ("redis://host?tll_s=5", "unknown parameter 'tll_s' of redis://; known: ttl_s, timeout_ms"),
        ("memory://?ttl_s=5", "unknown parameter 'ttl_s' of memory://; known: max_entries"),
        ("redis://host:port", "RERANKD_CACHE_URL"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        open_cache(url)


def test_a_message_never_repeats_a_password() -> None:
    with pytest.raises(ConfigError) as refused:
        open_cache("redis://user:hunter2@host:port/0")
    assert "hunter2" not in str(refused.value)


async def test_each_scheme_opens_its_cache() -> None:
    memory, redis = open_cache("memory://"), open_cache("redis://127.0.0.1:1/0")
    assert isinstance(memory, MemoryCache)
    assert isinstance(redis, RedisCache)
    assert open_cache("none://") is None
    await redis.close()
