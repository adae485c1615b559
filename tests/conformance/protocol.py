"""What a client library is to the conformance suite.

Runs inside the client's own environment: standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Target(NamedTuple):
    """Where the server is and how to speak to it."""

    url: str
    key: str
    model: str


@dataclass(frozen=True)
class Ranked:
    """One result as the client gives it; `text` is None where the client sends no document back."""

    index: int
    score: float
    text: str | None = None


# (target, query, documents, top_n, with_documents) -> results, in the client's order. A top_n of None means the
# client's own way to say "all".
Rank = Callable[[Target, str, Sequence[Any], int | None, bool], list[Ranked]]


@dataclass(frozen=True)
class Client:
    """`errors` are what the library raises for an answer that is an error; a message that it does not pass on is in
    `hides` with the reason, by case. `without` names the cases that the library has no way to ask, and why.
    """

    name: str
    rank: Rank
    errors: tuple[type[BaseException], ...]
    version: str
    without: Mapping[str, str] = field(default_factory=dict)
    hides: Mapping[str, str] = field(default_factory=dict)
    sorts: bool = True


def by_text(texts: Sequence[str], ranked: Sequence[tuple[str, float]]) -> list[Ranked]:
    """Results of a client that gives documents back without their index; texts are different from one another."""
    return [Ranked(texts.index(text), score) for text, score in ranked]
