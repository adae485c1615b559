"""API keys: any of several, compared in constant time, each with a name and, where it has them, limits."""

import asyncio
import hmac
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from time import perf_counter
from typing import Any, Final

from fastapi import Depends
from fastapi.params import Depends as Dependency
from starlette.requests import HTTPConnection

from rerankd.api.access import access_of
from rerankd.api.rates import Allowance, Rates
from rerankd.config.api_keys import ApiKey, read_api_keys
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError, Unauthorized

logger = logging.getLogger(__name__)

# For the OpenAPI document.
SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "Api-Key"},
}


# Those of a header. Of a key that ends in a letter such as "à", str.strip() would cut off a part of its bytes.
_BLANKS: Final = " \t"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what it may still ask for."""

    name: str
    allowance: Allowance


_EVERYBODY = Caller("", Allowance(Rates()))


@dataclass(frozen=True, slots=True)
class _Known:
    key: ApiKey
    digest: bytes
    caller: Caller


class ApiKeys:
    """Everybody may ask when there are no keys."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._known = [_known(key) for key in keys]

    def replace(self, keys: Sequence[ApiKey]) -> "KeyChanges":
        """Take these keys instead. What a key has used of its limits is kept while its name and limits stay, also when
        the key itself is another.
        """
        before = {known.key.name: known for known in self._known}
        self._known = [_known(key, before.get(key.name)) for key in keys]
        after = {known.key.name: known for known in self._known}
        return KeyChanges(
            added=sorted(after.keys() - before.keys()),
            removed=sorted(before.keys() - after.keys()),
            changed=sorted(name for name in after.keys() & before.keys() if after[name].key != before[name].key),
        )

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
        digests = _digests(given)
        # All are compared, so that the time taken does not tell which key was close.
        matching = [
            known.caller for known in self._known for digest in digests if hmac.compare_digest(digest, known.digest)
        ]
        if not matching:
            raise Unauthorized("this API key is not valid")
        return matching[0]

    def name_of(self, headers: Mapping[str, str]) -> str:
        """Whose key it is; "" where there is none or a wrong one."""
        try:
            return self.check(headers).name
        except Unauthorized:
            return ""

    def required(self) -> Dependency:
        """The same check as a dependency of routes, whose requests count as all others do."""

        def check(connection: HTTPConnection) -> None:
            caller = self.check(connection.headers)
            access_of(connection.scope).key = caller.name
            caller.allowance.ask(now=perf_counter())

        dependency: Dependency = Depends(check)
        return dependency


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanges:
    """Which keys came, went, or have another value or other limits; by name."""

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]


async def reload_api_keys(keys: ApiKeys, settings: Settings) -> None:
    """Read the file of keys again, for SIGHUP. One that cannot be used changes nothing; the log says which."""
    try:
        fresh = await asyncio.to_thread(read_api_keys, settings.api_keys, settings.api_keys_file)
    except ConfigError as error:
        logger.error("API keys stay as they were: %s", error)
        return
    changes = keys.replace(fresh)
    logger.info("API keys were read again", extra={"keys": len(fresh), **asdict(changes)})


def security_of(keys: ApiKeys) -> dict[str, Any]:
    """What the OpenAPI document says about an operation that needs a key: either scheme, where there are keys."""
    return {} if keys.open else {"security": [{name: []} for name in SECURITY_SCHEMES]}


def _rates(key: ApiKey) -> Rates:
    return Rates(requests_per_s=key.requests_per_s, tokens_per_min=key.tokens_per_min)


def _known(key: ApiKey, before: _Known | None = None) -> _Known:
    same = before is not None and _rates(before.key) == _rates(key)
    caller = before.caller if before is not None and same else Caller(key.name, Allowance(_rates(key)))
    return _Known(key, bytes.fromhex(key.sha256), caller)


def _digests(given: str) -> set[bytes]:
    """A header's bytes were read as Latin-1. A key beyond ASCII is sent in UTF-8 or in Latin-1, as its client likes."""
    return {sha256(given.encode("latin-1", "replace")).digest(), sha256(given.encode()).digest()}


def _given(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    credentials = credentials.strip(_BLANKS)
    if scheme.lower() == "bearer" and credentials:
        return credentials
    return headers.get("api-key", "").strip(_BLANKS) or None
