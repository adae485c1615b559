"""Bounds what is read of a text: tokenizing costs memory and time for every character, whatever is read of the tokens.

A tokenizer is given a text's beginning, or its end. If that turns out to have too few tokens, as white space and words
of thousands of letters have, it is given one longer part, and never more: what lies beyond counts as cut off, by an
estimate. The part first given holds twice the tokens that are read, so that these are the ones of the whole text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from rerankd.domain import Side
from rerankd.scorers.visible import LOOKED_AT

Content = TypeVar("Content")

_LEAST_FIRST: Final = 4096
# A cut moves by this many characters at most to spare a word.
_LONGEST_WORD: Final = 64


@dataclass(frozen=True, slots=True)
class Reach:
    """How many characters of a text are looked at: the `first` ones, and where these are not enough the `most`."""

    first: int
    most: int

    @classmethod
    def of(cls, units: int, *, first: int = 64, most: int = 128, least: int = _LEAST_FIRST) -> "Reach":
        """The reach in which this many tokens, or words, are looked for: `characters` for each."""
        return cls(max(least, units * first), max(LOOKED_AT, units * most))


class Part(NamedTuple, Generic[Content]):
    """What was made of this many characters of a text's beginning or end, and how many others it has."""

    content: Content
    characters: int
    unread: int

    def beyond(self, units: int) -> int:
        """About how many units, tokens or words, the unread characters are, given how many were read."""
        return max(1, round(units * self.unread / self.characters)) if self.unread else 0


def read_parts(
    texts: Sequence[str],
    read: Callable[[Sequence[str]], Sequence[Content]],
    *,
    enough: Callable[[Content], bool],
    reach: Reach,
    side: Side = Side.RIGHT,
) -> list[Part[Content]]:
    """Read as much of each text as is `enough`, within `reach`: its beginning, or its end where the left is cut."""
    if max(map(len, texts), default=0) <= reach.first:
        return [Part(content, len(text), 0) for text, content in zip(texts, read(texts), strict=True)]
    parts = [_part(text, reach.first, side) for text in texts]
    contents = list(read(parts))
    short = [index for index, text in enumerate(texts) if len(text) > len(parts[index]) and not enough(contents[index])]
    if short:
        longer = [_part(texts[index], reach.most, side) for index in short]
        for index, part, content in zip(short, longer, read(longer), strict=True):
            parts[index], contents[index] = part, content
    return [
        Part(content, len(part), len(text) - len(part))
        for text, part, content in zip(texts, parts, contents, strict=True)
    ]


def _part(text: str, size: int, side: Side) -> str:
    if len(text) <= size:
        return text
    if side is Side.LEFT:
        return text[-size:]
    # In front of white space, where there is some: half a word has other tokens than the whole.
    edge = max(text.rfind(space, size - _LONGEST_WORD, size) for space in " \n")
    return text[: edge if edge > 0 else size]
