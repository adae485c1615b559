"""Finds the proxy for a request in the usual variables: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY. Errors name
the variable, never its value, which may contain a password.
"""

from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies

from rerankd.errors import ConfigError

_SCHEMES: Final = ("http", "https", "socks5", "socks5h")
_SOCKS: Final = "socks"
# The package that httpx needs for them.
_SOCKS_PACKAGE: Final = "socksio"


def proxy_for(url: str) -> str | None:
    """The URL of the proxy that requests to a URL go through; None: none.

    Raises:
        ConfigError: a variable cannot be used.
    """
    proxies = getproxies()
    parts = urlsplit(url)
    if _excepted(parts.hostname or "", proxies.get("no", "")):
        return None
    return next((_checked(name, proxies[name]) for name in (parts.scheme, "all") if proxies.get(name)), None)


def check_proxies() -> None:
    """Whether the proxies can be used, for a client that reads the variables itself: what it would say of them holds
    parts of their values.

    Raises:
        ConfigError: a variable cannot be used.
    """
    proxies = getproxies()
    for name in ("http", "https", "all"):
        if proxies.get(name):
            _checked(name, proxies[name])


def _checked(name: str, value: str) -> str:
    variable = f"{name.upper()}_PROXY"
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        readable = bool(parts.hostname) and (parts.port or True)
    except ValueError:
        readable = False
    if not readable or not url.isprintable() or " " in url:
        raise ConfigError(
            f"{variable} cannot be read as a URL; write http://user:password@host:port, with %2F, %3F, %23, %40, %3A "
            "and %25 for / ? # @ : % in a password"
        )
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"{variable} must begin with http://, https:// or socks5://")
    if parts.scheme.startswith(_SOCKS) and find_spec(_SOCKS_PACKAGE) is None:
        raise ConfigError(f"{variable} is a SOCKS proxy, which needs one more package: pip install 'httpx[socks]'")
    return url


def _excepted(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names a host: by `*`, a name or the end of one, an address or a network of addresses."""
    return any(_names(entry, host.lower()) for entry in _entries(no_proxy))


def _entries(no_proxy: str) -> list[str]:
    return [entry.strip().lower() for entry in no_proxy.split(",") if entry.strip()]


def _names(entry: str, host: str) -> bool:
    if "/" in entry:
        try:
            network = ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            raise ConfigError(f"NO_PROXY: the entry {entry!r:.60} is not a network such as 10.0.0.0/8") from None
        return _is_address(host) and ip_address(host) in network
    if _is_address(entry.strip("[]")):
        return _is_address(host) and ip_address(host) == ip_address(entry.strip("[]"))
    name = entry.partition(":")[0].lstrip("*.")
    return entry == "*" or host == name or host.endswith(f".{name}")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
