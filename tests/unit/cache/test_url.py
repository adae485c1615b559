"""Cache URLs: every mistake is named, none is guessed away."""

from urllib.parse import urlsplit

import pytest

from rerankd.cache import open_cache
from rerankd.cache.memory import MemoryCache
from rerankd.cache.redis import RedisCache
from rerankd.cache.url import read_parameters
from rerankd.errors import ConfigError

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
    with pytest.raises(ConfigError, match="RERANKD_CACHE_URL: ttl_s must be a whole number above 0"):
        read_parameters(urlsplit(f"redis://host?ttl_s={value}"), _DEFAULTS)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("memcached://host", "must begin with one of memory://, redis://, rediss://, none://"),
        ("", "must begin with one of"),
        ("redis://host?tll_s=5", "a parameter that redis:// does not know; did you mean ttl_s?"),
        ("redis://host?xyzzy=5", "does not know; known: ttl_s, timeout_ms"),
        ("memory://?ttl_s=5", "a parameter that memory:// does not know; known: max_mb, max_entries"),
        ("memory://max_entries=5", "nothing may follow memory:// but ? and parameters"),
        ("none://?ttl_s=5", "a parameter that none:// does not know; known: none"),
        ("redis://host:port", "cannot be read as a URL; write redis://user:password@host:port/db"),
        ("redis://host:99999", "cannot be read as a URL"),
        ("redis://[::1", "cannot be read as a URL"),
        ("redis:///0", "names no host"),
        ("redis://host/first", "must be the number of a database"),
        ("redis://host/0/1", "must be the number of a database"),
        ("redis://host/0#1", "has a # in it"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_cache(url)
    assert str(refused.value).startswith("RERANKD_CACHE_URL")
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    "separator", [*"/?#:@%[]\\&=", "//", "?ttl_s=", "/1?", "\u2100", "]#", ":1/", "?timeout_ms=1&"]
)
@pytest.mark.parametrize(
    "shape",
    ["redis://:s3cret{}w0rd@host", "redis://u:s3cret{}w0rd@host:1/0?ttl_s=5", "s3cret{}w0rd@host", "s3cret{}w0rd://h"],
)
def test_no_message_repeats_any_part_of_a_password(shape: str, separator: str) -> None:
    """Whether it is a part of the host, of a port, of a path or of a parameter by mistake."""
    told = _told(shape.format(separator))
    assert "s3cret" not in told
    assert "w0rd" not in told


def _told(url: str) -> str:
    """The refusal of a URL; empty for one that is taken."""
    try:
        open_cache(url)
    except ConfigError as error:
        return str(error)
    return ""


async def test_each_scheme_opens_its_cache() -> None:
    memory, redis = open_cache("memory://"), open_cache("redis://127.0.0.1:1/0")
    assert isinstance(memory, MemoryCache)
    assert isinstance(redis, RedisCache)
    assert open_cache("none://") is None
    await redis.close()
