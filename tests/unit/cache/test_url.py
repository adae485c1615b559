"""Cache URLs: every mistake is named, none is guessed away."""

from urllib.parse import urlsplit

import pytest

from rerankd.cache import open_cache
from rerankd.cache.access import Access
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
        ("memcached://host", "must begin with one of memory://, none://, redis://, rediss://, redis+sentinel://"),
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
        ("redis://host/first", "the number of a database must stand there, and nothing else"),
        ("redis://host/0/1", "the number of a database must stand there"),
        ("redis://one,two:2", "names several servers; write redis+sentinel:// or redis+cluster://"),
        ("redis+cluster://one:1,:2", "names no host"),
        ("redis+cluster://one:1,two:many", "cannot be read as a URL"),
        ("redis+cluster://one/3", "a cluster has no databases"),
        ("redis+sentinel://one,two", "names no master; write redis+sentinel://host:26379"),
        ("redis+sentinel://one/name/first", "the number of a database must stand there"),
        ("redis+unix://run/redis.sock", "names no socket; write redis+unix:///path"),
        ("redis+unix:///redis.sock?db=first", "db must be a whole number"),
        ("redis://host?db=1", "a parameter that redis:// does not know"),
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
    [
        "redis://:s3cret{}w0rd@host",
        "redis://u:s3cret{}w0rd@host:1/0?ttl_s=5",
        "redis+cluster://u:s3cret{}w0rd@host:1,other:2",
        "redis+sentinel://:s3cret{}w0rd@host:1,other:2/name",
        "redis+unix://:s3cret{}w0rd@/path",
        "s3cret{}w0rd@host",
        "s3cret{}w0rd://h",
    ],
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


@pytest.mark.parametrize(
    ("url", "access", "complaint"),
    [
        ("redis://:one@host", {"password": "s3cret"}, "RERANKD_CACHE_PASSWORD is another: unset one"),
        ("redis://host", {"sentinel_password": "s3cret"}, "RERANKD_CACHE_SENTINEL_PASSWORD is for redis+sentinel://"),
        ("redis://host", {"ca_file": "ca.pem"}, "are for TLS, but RERANKD_CACHE_URL is redis://"),
        ("rediss://host", {"ca_file": "missing.pem"}, "RERANKD_CACHE_CA_FILE: no certificate can be read from it"),
        ("rediss://host", {"ca_file": __file__}, "RERANKD_CACHE_CA_FILE: no certificate can be read from it"),
        (
            "rediss://host",
            {"cert_file": __file__},
            "RERANKD_CACHE_CERT_FILE and RERANKD_CACHE_KEY_FILE: no certificate",
        ),
        ("rediss://host", {"key_file": __file__}, "has no certificate: set RERANKD_CACHE_CERT_FILE"),
        ("memory://", {"password": "s3cret"}, "are for Redis, but RERANKD_CACHE_URL is memory://"),
    ],
)
def test_settings_that_do_not_fit_the_url_are_refused(url: str, access: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_cache(url, access=Access(**access))
    assert complaint in str(refused.value)
    assert "s3cret" not in str(refused.value)


async def test_each_scheme_opens_its_cache() -> None:
    memory, redis = open_cache("memory://"), open_cache("redis://127.0.0.1:1/0")
    assert isinstance(memory, MemoryCache)
    assert isinstance(redis, RedisCache)
    assert open_cache("none://") is None
    await redis.close()
