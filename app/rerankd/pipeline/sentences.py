"""Decides which parts of a document are looked at for relevance by themselves: its sentences. Pure."""

import re
from collections.abc import Iterator
from math import ceil
from typing import Final

import numpy as np

from rerankd.scorers.base import Edges

# A sentence ends at a line's end, at a mark before white space, or at a mark of a script that has no white space.
_END: Final = re.compile(r"[.!?…؟।][\"'”’»)\]]*(?=\s)|[。！？｡][”’」』）]*|\n")  # noqa: RUF001 - marks of other scripts
_BLANK: Final = re.compile(r"\s*")
# What is shorter than this many characters is an abbreviation or a number of a list, and belongs to what follows.
_SHORTEST: Final = 12


def sentence_windows(text: str, edges: Edges, *, length: int, limit: int) -> list[tuple[int, int]]:
    """The sentences of a text, as (start, end) in characters; white space between them is in none of them.

    Sentences of more than `length` tokens are cut where words end. Where there are more than `limit` sentences, as many
    neighbours as needed share a window of at most `length` tokens. What does not fit into `limit` such windows is left
    out. `edges` are those of the text, or of its beginning, and nothing beyond them is looked at.
    """
    pieces = sentences(text, edges, length=length)
    together = ceil(len(pieces) / limit)
    windows: list[tuple[int, int]] = []
    joined = 0
    for start, end in pieces:
        if windows and joined < together and _tokens(windows[-1][0], end, edges) <= length:
            windows[-1] = (windows[-1][0], end)
            joined += 1
        elif len(windows) == limit:
            break
        else:
            windows.append((start, end))
            joined = 1
    return windows


def sentences(text: str, edges: Edges, *, length: int) -> list[tuple[int, int]]:
    """All sentences of a text, as (start, end) in characters, those of more than `length` tokens in pieces."""
    whole = _sentences(text[: int(edges.characters[-1])])
    return [piece for start, end in whole for piece in _cut(start, end, edges, length)]


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = _after_blanks(text, 0)
    for match in _END.finditer(text):
        if match.end() - start >= _SHORTEST:
            following = _after_blanks(text, match.end())
            # A mark before a small letter is that of an abbreviation.
            if match[0] == "\n" or not text[following : following + 1].islower():
                yield start, _without_blanks(text, start, match.end())
                # Behind the white space, so that none is looked at twice: a text may have megabytes of it.
                start = following
    if start < len(text):
        yield start, _without_blanks(text, start, len(text))


def _without_blanks(text: str, start: int, end: int) -> int:
    """Where a text that does not begin with white space ends without it."""
    return start + len(text[start:end].rstrip())


def _after_blanks(text: str, place: int) -> int:
    blanks = _BLANK.match(text, place)
    return blanks.end() if blanks else place


def _tokens(start: int, end: int, edges: Edges) -> int:
    """How many tokens these characters touch."""
    first = int(np.searchsorted(edges.characters, start, side="right")) - 1
    return max(1, int(np.searchsorted(edges.characters, end)) - first)


def _cut(start: int, end: int, edges: Edges, length: int) -> Iterator[tuple[int, int]]:
    """Pieces of at most `length` tokens; a cut goes back to a word's end where there is one."""
    while _tokens(start, end, edges) > length:
        first = int(np.searchsorted(edges.characters, start, side="right")) - 1
        words = np.flatnonzero(edges.words[first + 1 : first + length + 1])
        last = first + 1 + int(words[-1]) if len(words) else first + length
        middle = int(edges.characters[last])
        if middle <= start:
            break
        yield start, middle
        start = middle
    yield start, end
