"""Finds the model for a name. Clients of other services send names with a vendor's prefix."""

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# `azure/cohere/rerank-v3.5` has two before the name. What is longer is nobody's model.
MOST_PREFIXES: Final = 3
_LONGEST_NAME: Final = 500


class ModelNames(Generic[T]):
    """Models by their names and aliases; `fallback` answers to every name that is nobody's."""

    def __init__(self, by_name: Mapping[str, T], *, fallback: T | None = None) -> None:
        self._by_name = by_name
        self._fallback = fallback

    def find(self, name: str) -> T | None:
        """The model of that name, or of that name behind a vendor's; nothing is guessed beyond that."""
        found = self._by_name.get(name)
        if found is None and "/" in name and len(name) <= _LONGEST_NAME:
            parts = name.split("/", MOST_PREFIXES)
            rests = ("/".join(parts[start:]) for start in range(1, len(parts)))
            found = next((self._by_name[rest] for rest in rests if rest in self._by_name), None)
        return self._fallback if found is None else found
