"""Cuts a request's texts into chunks. Each takes one turn in a thread, so that other requests can go in between."""

from collections.abc import Iterator, Sequence

from rerankd.concurrency.turns import Share
from rerankd.domain import Terms


def chunks(texts: Sequence[str], terms: Terms, *, most: int, characters: int) -> Iterator[tuple[slice, Share]]:
    """Chunks of at most `most` texts and about `characters` characters; each has one text at least."""
    left = sum(map(len, texts))
    start = cost = 0
    for index, text in enumerate(texts):
        if index > start and (index - start == most or cost + len(text) > characters):
            yield slice(start, index), _share(terms, cost, left)
            left -= cost
            start, cost = index, 0
        cost += len(text)
    yield slice(start, len(texts)), _share(terms, cost, left)


def share_of(terms: Terms, texts: Sequence[str]) -> Share:
    """One turn for all of these texts."""
    characters = sum(map(len, texts))
    return _share(terms, characters, characters)


def _share(terms: Terms, cost: int, left: int) -> Share:
    return Share(caller=terms.caller, cost=max(1, cost), left=left, urgent=terms.urgent)
