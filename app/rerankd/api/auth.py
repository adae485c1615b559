"""Reads API keys from the headers of HTTP requests."""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, Final

from fastapi import Depends
from fastapi.params import Depends as Dependency
from starlette.requests import HTTPConnection

from rerankd.api.access import access_of
from rerankd.config.api_keys import Scope
from rerankd.gateway.gateway import Gateway
from rerankd.gateway.keys import ApiKeys

# For the OpenAPI document.
SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "Api-Key"},
}


# Those of a header. Of a key that ends in a letter such as "à", str.strip() would cut off a part of its bytes.
_BLANKS: Final = " \t"


def key_in(headers: Mapping[str, str]) -> Sequence[bytes]:
    """The key of `Authorization: Bearer KEY` or `Api-Key: KEY`, in every encoding that it may have; empty: none.

    The server read the header's bytes as Latin-1. A key beyond ASCII was sent in UTF-8 or in Latin-1.
    """
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    key = credentials.strip(_BLANKS) if scheme.lower() == "bearer" else ""
    key = key or headers.get("api-key", "").strip(_BLANKS)
    if key.isascii():
        return [key.encode()] if key else []
    return [key.encode("latin-1", "replace"), key.encode()]


def key_required(gateway: Gateway, scope: Scope) -> Dependency:
    """The check as a dependency of routes other than rerank's. Their requests count against the key's rate too."""

    async def check(connection: HTTPConnection) -> None:
        await gateway.admit(key_in(connection.headers), access_of(connection.scope).call, scope=scope)

    dependency: Dependency = Depends(check)
    return dependency


def admin_key_required(keys: ApiKeys, clock: Callable[[], float] = perf_counter) -> Dependency:
    """The check of an admin key. Other keys do not pass it."""

    async def check(connection: HTTPConnection) -> None:
        caller = keys.identify(key_in(connection.headers), scope="admin")
        access_of(connection.scope).call.key = caller.name
        await caller.allowance.ask(now=clock())

    dependency: Dependency = Depends(check)
    return dependency


def security_of(keys: ApiKeys) -> dict[str, Any]:
    """What the OpenAPI document says about an operation that needs a key: either scheme, where there are keys."""
    return {} if keys.open else {"security": [{name: []} for name in SECURITY_SCHEMES]}
