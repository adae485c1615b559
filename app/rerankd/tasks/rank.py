"""Rank: a query and documents go to a rerank service as texts, one score for each document comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Protocol

from rerankd.tasks.text_tokens import tokens_of

# The JSON of an answer, of whatever shape.
Answer = Any


@dataclass(frozen=True, slots=True)
class TextPair:
    """A query and one document. `instruction`: what counts as relevant; None: the service's own word on that."""

    query: str
    document: str
    instruction: str | None = None


class RemoteApi(Protocol):
    """How a service is asked, and what its answers say."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str:
        """Where requests go, behind the base URL."""

    @property
    def max_documents(self) -> int:
        """The documents of one request that services of this kind usually take."""

    def body(self, model: str, pairs: Sequence[TextPair], /) -> Mapping[str, Any]:
        """A request for pairs with one query and one instruction."""

    def read(self, answer: Answer, /, *, documents: int) -> list[float]:
        """The documents' scores, in the order of the request.

        Raises:
            ValueError, KeyError, IndexError, TypeError: the answer does not have one for each.
        """


@dataclass(frozen=True, slots=True)
class Rank:
    """Payloads are `TextPair`s, results scores. Costs are estimates, since only the service can count tokens."""

    api: RemoteApi

    name: ClassVar[str] = "rank"
    outputs: ClassVar[None] = None

    def identities(self, pairs: Sequence[TextPair]) -> list[bytes]:
        return [_identity(pair) for pair in pairs]

    def costs(self, pairs: Sequence[TextPair]) -> list[int]:
        return [
            max(1, tokens_of(pair.query) + tokens_of(pair.document) + tokens_of(pair.instruction or ""))
            for pair in pairs
        ]


def _identity(pair: TextPair) -> bytes:
    digest = blake2b(digest_size=16)
    for text in (pair.query, pair.document, *(() if pair.instruction is None else (pair.instruction,))):
        content = text.encode("utf-8", "replace")
        # so that ("ab", "c") is not ("a", "bc")
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.digest()
