"""API keys, found by their hashes: whose key it is, what it may ask for, and what it has used of that."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from rerankd.config.api_keys import ApiKey, Scope
from rerankd.errors import Forbidden, Unauthorized
from rerankd.gateway.rates import Allowance, Counted, Rates


@dataclass(frozen=True, slots=True)
class Caller:
    """A client, by the name of its API key, and what it may still ask for."""

    name: str
    allowance: Counted


_ANYBODY: Final = Caller("", Allowance(Rates()))


@dataclass(frozen=True, slots=True)
class _Entry:
    key: ApiKey
    caller: Caller


def count_here(_name: str, rates: Rates) -> Counted:
    """In this process, whatever others count."""
    return Allowance(rates)


class ApiKeys:
    """The keys that are valid now. Without keys every request is allowed."""

    def __init__(
        self, keys: Sequence[ApiKey], *, called: str = "API key", counted: Callable[[str, Rates], Counted] = count_here
    ) -> None:
        """`called` is what errors call such a key. `counted` opens what a name may ask for at these rates."""
        self._called = called
        self._counted = counted
        self._entries = _by_digest(self._entry(key) for key in keys)

    @property
    def open(self) -> bool:
        return not self._entries

    def identify(self, spellings: Sequence[bytes], *, scope: Scope = "rerank") -> Caller:
        """The caller that has this key. `spellings` are the encodings that the key may have been sent in; empty: none
        was sent.

        The hash is looked up, in the same time for one key and for a thousand. That time tells nothing of a key: nobody
        can choose a text whose SHA-256 begins as that of another.

        Raises:
            Unauthorized: there is no key, or a wrong one.
            Forbidden: the key is not for this.
        """
        if self.open:
            return _ANYBODY
        if not spellings:
            raise Unauthorized(f"no {self._called}, and this request needs one")
        for spelling in spellings:
            entry = self._entries.get(sha256(spelling).digest())
            if entry is not None:
                if scope not in entry.key.scopes:
                    raise Forbidden(f"this {self._called} has no scope {scope!r}; use another, or ask the operator")
                return entry.caller
        raise Unauthorized(f"this {self._called} is not valid")

    def named(self, name: str, *, scope: Scope = "rerank") -> Caller:
        """The caller of this name, whose key was checked before; "": there were no keys then.

        Raises:
            Unauthorized: there is no such key any more.
            Forbidden: the key is not for this any more.
        """
        if self.open and not name:
            return _ANYBODY
        entry = next((entry for entry in self._entries.values() if entry.key.name == name), None)
        if entry is None:
            raise Unauthorized(f"the {self._called} was removed; create the batch again with another one")
        if scope not in entry.key.scopes:
            raise Forbidden(f"the {self._called} has no scope {scope!r} any more")
        return entry.caller

    def replace(self, keys: Sequence[ApiKey]) -> "KeyChanges":
        """Use these keys instead. A name with the same limits keeps its usage, even when the key itself has changed."""
        before = {entry.key.name: entry for entry in self._entries.values()}
        self._entries = _by_digest(self._entry(key, before.get(key.name)) for key in keys)
        after = {entry.key.name: entry for entry in self._entries.values()}
        return KeyChanges(
            added=sorted(after.keys() - before.keys()),
            removed=sorted(before.keys() - after.keys()),
            changed=sorted(name for name in after.keys() & before.keys() if after[name].key != before[name].key),
        )

    def _entry(self, key: ApiKey, before: _Entry | None = None) -> _Entry:
        same = before is not None and _rates(before.key) == _rates(key)
        caller = (
            before.caller if before is not None and same else Caller(key.name, self._counted(key.name, _rates(key)))
        )
        return _Entry(key, caller)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanges:
    """The names of the keys that are new, gone, or have another value, other limits or scopes."""

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]

    def joined(self, other: "KeyChanges") -> "KeyChanges":
        return KeyChanges(
            added=_names(self.added, other.added),
            removed=_names(self.removed, other.removed),
            changed=_names(self.changed, other.changed),
        )


def _rates(key: ApiKey) -> Rates:
    return Rates(requests_per_s=key.requests_per_s, tokens_per_min=key.tokens_per_min)


def _by_digest(entries: Iterable[_Entry]) -> dict[bytes, _Entry]:
    return {bytes.fromhex(entry.key.sha256): entry for entry in entries}


def _names(*groups: Sequence[str]) -> list[str]:
    return sorted({name for group in groups for name in group})
