"""API keys: any of several, compared in constant time, each with a name and, where it has them, limits."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from fastapi import Depends
from fastapi.params import Depends as Dependency
from starlette.requests import HTTPConnection

from app.api.rates import Allowance, Rates
from app.config import ApiKey
from app.errors import Unauthorized

# For the OpenAPI document.
SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "Api-Key"},
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what it may still ask for."""

    name: str
    allowance: Allowance


_EVERYBODY = Caller("", Allowance(Rates()))


class ApiKeys:
    """Lets everybody in when there are no keys."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._known = [(bytes.fromhex(key.sha256), Caller(key.name, Allowance(_rates(key)))) for key in keys]

    @property
    def open(self) -> bool:
        return not self._known

    def check(self, headers: Mapping[str, str]) -> Caller:
        """Let a request pass that carries a key, as `Authorization: Bearer KEY` or `Api-Key: KEY`.

        Raises:
            Unauthorized: it carries none, or a wrong one.
        """
        if self.open:
            return _EVERYBODY
        given = _given(headers)
        if given is None:
            raise Unauthorized("no API key; send the header `Authorization: Bearer KEY`")
        # Servers read a header's bytes as Latin-1; a key with other characters arrives in UTF-8.
        digest = sha256(given.encode("latin-1", "replace")).digest()
        # All are compared, so that the time taken does not tell which key was close.
        matching = [caller for known, caller in self._known if hmac.compare_digest(digest, known)]
        if not matching:
            raise Unauthorized("this API key is not valid")
        return matching[0]

    def required(self) -> Dependency:
        """The same check as a dependency of routes."""

        def check(connection: HTTPConnection) -> None:
            self.check(connection.headers)

        dependency: Dependency = Depends(check)
        return dependency


def security_of(keys: ApiKeys) -> dict[str, Any]:
    """What the OpenAPI document says about an operation that needs a key: either scheme, where there are keys."""
    return {} if keys.open else {"security": [{name: []} for name in SECURITY_SCHEMES]}


def _rates(key: ApiKey) -> Rates:
    return Rates(requests_per_s=key.requests_per_s, tokens_per_min=key.tokens_per_min)


def _given(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("api-key") or None
