"""Random requests of the reference workload: documents of 40-220 tokens, queries of 6-15, no duplicates.

Texts are slices of one long text of common words, so that a request costs only microseconds: the generator shares the
CPU with the server that it measures.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any, Final, NamedTuple, Self

from rerankd.errors import ConfigError

VOCABULARY: Final = """
    the of and to in for is on that by this with you it not or be are from at as your all have new more an was we
    will can about if page my has search free but our one other do no information time they site he up may what
    which their news out use any there see only so his when contact here business who web also now help get view
    online first been would how were services some these click its like service than find price date back top
    people list name just over state year day into email two health world next used go work last most products
    music buy data make them should product system post her city policy number such please available copyright
    support message after best software then good video well where info rights public books high school through
    each links she review years order very privacy book items company read group need many user said de does set
    under general research university january mail full map reviews program life know games way days management
    part could great united hotel real item international center
"""
_TAPE_WORDS: Final = 200_000
_KEPT_FOR_REPETITION: Final = 256


class Body(NamedTuple):
    """The JSON of a request, and its number of documents."""

    content: bytes
    documents: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The number of documents per request. Several sizes are equally likely."""

    sizes: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `30`, or a mix as `10+30+100`.

        Raises:
            ConfigError: a part is no number from 1 on.
        """
        parts = text.split("+")
        wrong = [part for part in parts if not part.strip().isdigit() or int(part) < 1]
        if wrong:
            raise ConfigError(f"{text!r}: {wrong[0]!r} is not a number of documents; write 30, or a mix as 10+30+100")
        return cls(tuple(int(part) for part in parts))

    def __str__(self) -> str:
        return "+".join(map(str, self.sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The length of texts in words, uniform between the two counts."""

    document: tuple[int, int] = (35, 190)
    query: tuple[int, int] = (5, 13)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The body's format: the field of the documents, and further fields (a model's name)."""

    documents_field: str = "documents"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def join(self, query: bytes, documents: Sequence[bytes]) -> bytes:
        """The body; texts must need no escaping in JSON."""
        rest = b"".join(
            b"," + json.dumps(name).encode() + b":" + json.dumps(value).encode() for name, value in self.extra.items()
        )
        texts = b'","'.join(documents)
        return b'{"query":"%b","%b":["%b"]%b}' % (query, self.documents_field.encode(), texts, rest)


class Workload:
    """An endless stream of requests. A `repeat_share` of them repeat one of the last requests."""

    def __init__(
        self,
        shape: Shape,
        *,
        seed: int,
        repeat_share: float = 0.0,
        words: Words | None = None,
        format: Format | None = None,  # noqa: A002 - the word for it
    ) -> None:
        self._shape = shape
        self._rng = Random(seed)
        self._repeat_share = repeat_share
        self._words = words or Words()
        self._format = format or Format()
        self._sent: list[Body] = []
        self._tape, self._starts = _tape()  # now, not while the first request is timed

    def __iter__(self) -> Iterator[Body]:
        return self

    def __next__(self) -> Body:
        if self._sent and self._rng.random() < self._repeat_share:
            return self._rng.choice(self._sent)
        body = self._fresh()
        if self._repeat_share:
            self._keep(body)
        return body

    def _fresh(self) -> Body:
        documents = self._rng.choice(self._shape.sizes)
        query = self._text(self._words.query)
        return Body(self._format.join(query, [self._text(self._words.document) for _ in range(documents)]), documents)

    def _keep(self, body: Body) -> None:
        if len(self._sent) < _KEPT_FOR_REPETITION:
            self._sent.append(body)
        else:
            self._sent[self._rng.randrange(_KEPT_FOR_REPETITION)] = body

    def _text(self, words: tuple[int, int]) -> bytes:
        length = self._rng.randint(*words)
        first = self._rng.randrange(len(self._starts) - length - 1)
        return self._tape[self._starts[first] : self._starts[first + length] - 1]


@cache
def _tape() -> tuple[bytes, list[int]]:
    """Words, each followed by a blank, and their offsets."""
    words = Random(0).choices(VOCABULARY.split(), k=_TAPE_WORDS)
    starts, position = [], 0
    for word in words:
        starts.append(position)
        position += len(word) + 1
    return (" ".join(words) + " ").encode(), starts
