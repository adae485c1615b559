"""API keys: any of several, compared in constant time."""

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256

from fastapi import Depends
from fastapi.params import Depends as Dependency
from starlette.requests import HTTPConnection

from app.errors import Unauthorized

_NAME_LENGTH = 12


class ApiKeys:
    """Lets everybody in when there are no keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @property
    def open(self) -> bool:
        return not self._digests

    def check(self, headers: Mapping[str, str]) -> str:
        """Let a request pass that carries a key, as `Authorization: Bearer KEY` or `Api-Key: KEY`, and return a name
        for whoever has that key; one for all where there are no keys.

        Raises:
            Unauthorized: it carries none, or a wrong one.
        """
        if self.open:
            return ""
        given = _given(headers)
        if given is None:
            raise Unauthorized("no API key; send the header `Authorization: Bearer KEY`")
        # Servers read a header's bytes as Latin-1; a key with other characters arrives in UTF-8.
        digest = _digest(given.encode("latin-1", "replace"))
        # All are compared, so that the time taken does not tell which key was close.
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):  # noqa: C419 - see above
            raise Unauthorized("this API key is not valid")
        return digest.hex()[:_NAME_LENGTH]

    def required(self) -> Dependency:
        """The same check as a dependency of routes."""

        def check(connection: HTTPConnection) -> None:
            self.check(connection.headers)

        dependency: Dependency = Depends(check)
        return dependency


def _given(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("api-key") or None


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
