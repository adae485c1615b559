"""How a tokenizer joins a query and a document: read off once, then assembled by hand.

The query is tokenized once per request instead of once per pair. The assembly is checked at load time against the
tokenizer's own pair encoding, so that a tokenizer that joins pairs in some other way is refused and never misread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rerankd.domain import IntArray
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding

_PROBES = (
    ("what is love", "Baby don't hurt me."),
    ("a", "b"),
    (" Leading and  double spaces ", "tabs\tand\nnewlines \n"),
    ("größe 漢字 кириллица", "naïve café 日本語のテキスト \u202e عربى 🎉👩‍👩‍👧"),
    ("numbers 3.14159", "1234567890 " * 40),
)


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """Special tokens around a pair: `head` query `middle` document `tail`. With `segments`, all after the first
    `segment_offset` tokens of `middle` belongs to segment 1.
    """

    head: IntArray
    middle: IntArray
    tail: IntArray
    segments: bool
    segment_offset: int

    @property
    def special_tokens(self) -> int:
        return len(self.head) + len(self.middle) + len(self.tail)

    def join(self, query_ids: IntArray, document_ids: IntArray | NDArray[np.int32]) -> Encoding:
        return self.join_all(query_ids, [document_ids])[0]

    def join_all(self, query_ids: IntArray, documents: Sequence[IntArray | NDArray[np.int32]]) -> list[Encoding]:
        """The pairs of a query with documents, at least one; their ids are parts of one array."""
        before = np.concatenate((self.head, query_ids, self.middle))
        parts = [part for document in documents for part in (before, document, self.tail)]
        ids: IntArray = np.concatenate(parts, dtype=np.int64)
        ends = accumulate(len(before) + len(document) + len(self.tail) for document in documents)
        if not self.segments:
            return [Encoding(ids[start:end], end - start) for start, end in pairwise(chain((0,), ends))]
        boundary = len(self.head) + len(query_ids) + self.segment_offset
        return [Encoding(ids[start:end], boundary) for start, end in pairwise(chain((0,), ends))]


def read_template(tokenizer: Tokenizer) -> PairTemplate:
    """Read the template off the tokenizer, and check it on a few pairs.

    Raises:
        ConfigError: the tokenizer joins pairs in a way that this template cannot say.
    """
    template = _read(tokenizer)
    for query, document in _PROBES:
        _check(template, tokenizer, query, document)
    return template


def read_joined_template(tokenizer: Tokenizer) -> PairTemplate:
    """The template of a pair that was made one text, with the tokenizer's separator between two spaces; checked on a
    few pairs.

    Raises:
        ConfigError: the tokenizer reads such a text otherwise.
    """
    pair = _read(tokenizer)
    separator = pair.tail[-1:]
    template = replace(pair, middle=separator, segments=False, segment_offset=0)
    text = "".join(map(tokenizer.id_to_token, separator))
    for query, document in _PROBES:
        expected = tokenizer.encode(f"{query} {text} {document}", add_special_tokens=True)
        if not text or _joined(template, tokenizer, query, document).ids.tolist() != expected.ids:
            raise _difference(query, document)
    return template


def _read(tokenizer: Tokenizer) -> PairTemplate:
    pair = tokenizer.encode("a", "b", add_special_tokens=True)
    owners = pair.sequence_ids
    if 0 not in owners or 1 not in owners:
        raise ConfigError("the tokenizer encodes the letters a and b to nothing; is tokenizer.json complete?")
    query_start, query_end = _span(owners, 0)
    document_start, document_end = _span(owners, 1)
    if query_start > document_start:
        raise ConfigError("the tokenizer puts the document before the query; this layout is not supported")
    segments = 1 in pair.type_ids
    return PairTemplate(
        head=np.array(pair.ids[:query_start], dtype=np.int64),
        middle=np.array(pair.ids[query_end:document_start], dtype=np.int64),
        tail=np.array(pair.ids[document_end:], dtype=np.int64),
        segments=segments,
        segment_offset=pair.type_ids.index(1) - query_end if segments else 0,
    )


def _span(owners: list[int | None], owner: int) -> tuple[int, int]:
    start = owners.index(owner)
    return start, len(owners) - owners[::-1].index(owner)


def _check(template: PairTemplate, tokenizer: Tokenizer, query: str, document: str) -> None:
    expected = tokenizer.encode(query, document, add_special_tokens=True)
    joined = _joined(template, tokenizer, query, document)
    types = [int(position >= joined.boundary) for position in range(len(joined.ids))]
    if joined.ids.tolist() != expected.ids or types != expected.type_ids:
        raise _difference(query, document)


def _joined(template: PairTemplate, tokenizer: Tokenizer, query: str, document: str) -> Encoding:
    query_ids, document_ids = (
        np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64) for text in (query, document)
    )
    return template.join(query_ids, document_ids)


def _difference(query: str, document: str) -> ConfigError:
    return ConfigError(
        f"pairs assembled by hand differ from the tokenizer's own encoding of {(query, document)!r}; "
        "this tokenizer's post-processor is not supported"
    )
