"""The client's address behind a trusted proxy, from X-Forwarded-For, for the log."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

_HEADER: Final = b"x-forwarded-for"
_LONGEST_ADDRESS: Final = 64

Address = IPv4Address | IPv6Address


class ForwardedClient:
    """Takes as the client the first address, from the last proxy backwards, that is not a trusted proxy. Something
    that is not an address ends the search: what a client claims before it cannot be trusted.
    """

    def __init__(self, app: ASGIApp, *, trusted: Sequence[str]) -> None:
        self._app = app
        networks = [ip_network(network) for network in trusted]
        self._is_trusted = lru_cache(maxsize=4096)(lambda address: any(address in network for network in networks))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client:
            hops = b",".join(value for name, value in scope["headers"] if name == _HEADER).decode("latin-1")
            scope["client"] = self._client(client, hops)
        await self._app(scope, receive, send)

    def _client(self, peer: tuple[str, int], hops: str) -> tuple[str, int]:
        client, address = peer, _address(peer[0])
        for hop in reversed(hops.split(",")):
            if address is None or not self._is_trusted(address):
                break
            address = _address(hop)
            client = client if address is None else (str(address), 0)
        return client


def _address(hop: str) -> Address | None:
    """The address of `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`."""
    text = hop.strip()
    if len(text) > _LONGEST_ADDRESS:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return ip_address(text)
    except ValueError:
        return None
