"""Cuts a request's texts into chunks. Each takes one turn in a thread, so that other requests can go in between."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rerankd.concurrency.turns import Share
from rerankd.domain import Document, Terms

# An image takes as long to read as a text of this many characters takes to tokenize.
_IMAGE_CHARACTERS: Final = 50_000


def chunks(texts: Sequence[str], terms: Terms, *, most: int, characters: int) -> Iterator[tuple[slice, Share]]:
    """Chunks of at most `most` texts and about `characters` characters; each has one text at least."""
    size = _size_of(texts)
    left = sum(map(size, texts))
    start = cost = 0
    for index, text in enumerate(texts):
        own = size(text)
        if index > start and (index - start == most or cost + own > characters):
            yield slice(start, index), _share(terms, cost, left)
            left -= cost
            start, cost = index, 0
        cost += own
    yield slice(start, len(texts)), _share(terms, cost, left)


def share_of(terms: Terms, texts: Sequence[str]) -> Share:
    """One turn for all of these texts."""
    characters = sum(map(len, texts))
    return _share(terms, characters, characters)


def _size_of(texts: Sequence[str]) -> Callable[[str], int]:
    """What a text costs, in characters."""
    return _with_image if Document in set(map(type, texts)) else len


def _with_image(text: str) -> int:
    return len(text) + (_IMAGE_CHARACTERS if isinstance(text, Document) else 0)


def _share(terms: Terms, cost: int, left: int) -> Share:
    return Share(caller=terms.caller, cost=max(1, cost), left=left, urgent=terms.urgent)
