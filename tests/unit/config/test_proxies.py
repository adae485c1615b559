"""Variables of proxies: what they mean, and that one that cannot be used is named without its value."""

import pytest

from rerankd.config.proxies import check_proxies, proxy_for
from rerankd.errors import ConfigError

_PROXY = "http://user:s3cret@proxy:3128"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


def test_without_variables_there_is_no_proxy() -> None:
    assert proxy_for("https://host/v1") is None
    check_proxies()


@pytest.mark.parametrize(
    ("variable", "value", "url", "expected"),
    [
        ("HTTPS_PROXY", _PROXY, "https://host/v1", _PROXY),
        ("HTTPS_PROXY", _PROXY, "http://host/v1", None),
        ("HTTP_PROXY", "proxy:3128", "http://host/v1", "http://proxy:3128"),
        ("https_proxy", "http://[::1]:3128", "https://host", "http://[::1]:3128"),
        ("ALL_PROXY", _PROXY, "https://host", _PROXY),
    ],
)
def test_a_proxy_is_the_one_of_the_urls_scheme(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, url: str, expected: str | None
) -> None:
    monkeypatch.setenv(variable, value)
    assert proxy_for(url) == expected


@pytest.mark.parametrize(
    ("no_proxy", "url", "excepted"),
    [
        ("*", "https://host", True),
        ("host", "https://host:8000/v1", True),
        ("example.com", "https://api.example.com", True),
        (".example.com, other", "https://api.EXAMPLE.com", True),
        ("*.example.com", "https://api.example.com", True),
        ("example.com", "https://badexample.com", False),
        ("host:8000", "https://host:8000", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8", "https://host", False),
        ("127.0.0.1,::1", "https://[::1]:8000", True),
        ("[::1]", "https://[::1]:8000", True),
        ("fe80::/10", "https://[fe80::1]", True),
        ("fe80::/10,fd00::/8", "https://[2001::1]", False),
        ("", "https://host", False),
    ],
)
def test_no_proxy_names_hosts_addresses_and_networks(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, excepted: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", _PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for(url) is None) == excepted


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("HTTPS_PROXY", "http://user:s3cret@proxy:port", "HTTPS_PROXY cannot be read as a URL"),
        ("HTTPS_PROXY", "http://user:s3cret/w0rd@proxy:1", "HTTPS_PROXY cannot be read as a URL"),
        ("HTTPS_PROXY", "http://user:s3cret#w0rd@proxy:1", "HTTPS_PROXY cannot be read as a URL"),
        ("HTTPS_PROXY", "http://user:s3cret@proxy\u2100", "HTTPS_PROXY cannot be read as a URL"),
        ("HTTPS_PROXY", "http://[s3cret", "HTTPS_PROXY cannot be read as a URL"),
        ("HTTPS_PROXY", "http://user:s3cret w0rd@proxy", "HTTPS_PROXY cannot be read as a URL"),
        ("HTTPS_PROXY", "http://", "HTTPS_PROXY cannot be read as a URL"),
        ("ALL_PROXY", "ftp://user:s3cret@proxy", "ALL_PROXY must begin with http://, https:// or socks5://"),
        ("ALL_PROXY", "socks5://user:s3cret@proxy", "ALL_PROXY is a SOCKS proxy, which needs one more package"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=complaint) as refused:
        proxy_for("https://host")
    told = str(refused.value)
    with pytest.raises(ConfigError, match=complaint):
        check_proxies()
    assert "s3cret" not in told
    assert "w0rd" not in told


def test_an_entry_of_no_proxy_that_is_no_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "host/8")
    with pytest.raises(ConfigError, match="NO_PROXY: the entry 'host/8' is not a network"):
        proxy_for("https://10.0.0.1")
