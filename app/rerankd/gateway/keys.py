"""API keys, compared in constant time: whose key it is, what it may ask for, and what it has used of that."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from rerankd.config.api_keys import ApiKey
from rerankd.errors import Unauthorized
from rerankd.gateway.rates import Allowance, Rates


@dataclass(frozen=True, slots=True)
class Caller:
    """A client, by the name of its API key, and what it may still ask for."""

    name: str
    allowance: Allowance


_ANYBODY: Final = Caller("", Allowance(Rates()))


@dataclass(frozen=True, slots=True)
class _Entry:
    key: ApiKey
    digest: bytes
    caller: Caller


class ApiKeys:
    """The keys that are valid now. Without keys every request is allowed."""

    def __init__(self, keys: Sequence[ApiKey], *, called: str = "API key") -> None:
        """`called` is what errors call such a key."""
        self._called = called
        self._entries = [_entry(key) for key in keys]

    @property
    def open(self) -> bool:
        return not self._entries

    def identify(self, spellings: Sequence[bytes]) -> Caller:
        """The caller that has this key. `spellings` are the encodings that the key may have been sent in; empty: none
        was sent.

        Raises:
            Unauthorized: there is no key, or a wrong one.
        """
        if self.open:
            return _ANYBODY
        if not spellings:
            raise Unauthorized(f"no {self._called}, and this request needs one")
        digests = [sha256(spelling).digest() for spelling in spellings]
        # All are compared, so that the time taken does not tell which key was close.
        callers = [
            entry.caller for entry in self._entries for digest in digests if hmac.compare_digest(digest, entry.digest)
        ]
        if not callers:
            raise Unauthorized(f"this {self._called} is not valid")
        return callers[0]

    def replace(self, keys: Sequence[ApiKey]) -> "KeyChanges":
        """Use these keys instead. A name with the same limits keeps its usage, even when the key itself has changed."""
        before = {entry.key.name: entry for entry in self._entries}
        self._entries = [_entry(key, before.get(key.name)) for key in keys]
        after = {entry.key.name: entry for entry in self._entries}
        return KeyChanges(
            added=sorted(after.keys() - before.keys()),
            removed=sorted(before.keys() - after.keys()),
            changed=sorted(name for name in after.keys() & before.keys() if after[name].key != before[name].key),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanges:
    """The names of the keys that are new, gone, or have another value or other limits."""

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]


def _rates(key: ApiKey) -> Rates:
    return Rates(requests_per_s=key.requests_per_s, tokens_per_min=key.tokens_per_min)


def _entry(key: ApiKey, before: _Entry | None = None) -> _Entry:
    same = before is not None and _rates(before.key) == _rates(key)
    caller = before.caller if before is not None and same else Caller(key.name, Allowance(_rates(key)))
    return _Entry(key, bytes.fromhex(key.sha256), caller)
