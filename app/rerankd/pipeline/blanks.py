"""Keeps blank texts away from the model. Documents of which it would see nothing have no score, and come last.

A model sees what its tokenizer leaves. A text that shows nothing (`scorers.visible`) is blank for every model, even if
its characters are tokens. A visible text is blank if the tokenizer drops all of it, as BERT's drops accents without a
letter.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.worker import in_chunks
from rerankd.domain import BoolArray, Document, ScoreOptions, Scores, Side, Terms, WindowWishes, settled_of
from rerankd.errors import InvalidRequest
from rerankd.pipeline.chunks import chunks
from rerankd.pipeline.stage import Stage
from rerankd.scorers.visible import LOOKED_AT, PLAIN_STARTS, is_plain, visible_characters

# Whether a tokenizer leaves nothing of a short text.
Drops = Callable[[str], bool]

_TEXTS_PER_CALL: Final = 1000
_CHARACTERS_PER_CALL: Final = 1_000_000
# Of this many characters it is remembered whether the model sees them.
_REMEMBERED: Final = 1 << 14
_LOOKED_BEHIND: Final = 64


def drops_nothing(_text: str) -> bool:
    """For what has no tokenizer."""
    return False


class BlankStage:
    """Wraps the stages that score. Blank documents get a value below all others, and `Scores.blank` names them."""

    def __init__(self, inner: Stage, tokenizing: SharedWorker, *, drops: Drops) -> None:
        self._inner = inner
        self._tokenizing = tokenizing
        self._seen = _SeenCharacters(drops)

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score the documents that are not blank.

        Raises:
            InvalidRequest: the query is blank.
            RerankError: what the inner stage raises.
        """
        if not is_plain(query) and await self._blank_among([query], options.terms):
            raise InvalidRequest("the query is empty; send the text that documents are to be compared with")
        positions = await self._blank_among(_read_parts(documents, options), options.terms)
        if not positions:
            return await self._inner.score(query, documents, options)
        blank = np.zeros(len(documents), dtype=np.bool_)
        blank[positions] = True
        written = np.flatnonzero(~blank)
        texts = [documents[index] for index in written.tolist()]
        options = replace(
            options, windows=_wishes(options.windows, blank), settled=settled_of(options.settled, written)
        )
        scores = await self._inner.score(query, texts, options) if texts else Scores.unread(0)
        return scores.scatter(written, documents=len(documents))

    async def _blank_among(self, texts: Sequence[str], terms: Terms) -> list[int]:
        """The positions of blank texts. A thread examines the few of which a short look does not tell."""
        doubtful: list[int] = []
        async for span in in_chunks(len(texts)):
            doubtful += [
                index
                for index, text in enumerate(texts[span], start=span.start)
                if not (self._seen.begins(text) or is_plain(text) or isinstance(text, Document))
            ]
        if not doubtful:
            return []
        parts = [texts[index][:LOOKED_AT] for index in doubtful]
        blank: list[int] = []
        for span, share in chunks(parts, terms, most=_TEXTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            blanks = await self._tokenizing.run(share, self._seen.are_blank, parts[span])
            blank += [index for index, empty in zip(doubtful[span], blanks, strict=True) if empty]
        return blank


class _SeenCharacters:
    """Knows which characters a model sees: those that show something and that its tokenizer does not drop. To tokenize
    each doubtful text would take as long as to tokenize it for a score.
    """

    def __init__(self, drops: Drops) -> None:
        self._drops = drops
        self._known = dict.fromkeys(PLAIN_STARTS, True)

    def begins(self, text: str) -> bool:
        """Whether a text is known to begin with a character that the model sees, perhaps behind white space."""
        return self._known.get(text[:1], False) or self._known.get(text[:_LOOKED_BEHIND].lstrip()[:1], False)

    def are_blank(self, texts: Sequence[str]) -> list[bool]:
        """Which texts have no character that the model sees. Blocking."""
        return [not self._shows(text) for text in texts]

    def _shows(self, text: str) -> bool:
        characters = visible_characters(text)
        # Learn the first one, by which the next text like this is known.
        first = text[:_LOOKED_BEHIND].lstrip()[:1]
        return (first in characters and self._is_seen(first)) or any(map(self._is_seen, characters))

    def _is_seen(self, character: str) -> bool:
        seen = self._known.get(character)
        if seen is None:
            seen = character.isalnum() or not self._drops(character)
            if len(self._known) < _REMEMBERED:
                self._known[character] = seen
        return seen


def _read_parts(documents: Sequence[str], options: ScoreOptions) -> Sequence[str]:
    """What is looked at of each document: its beginning, or its end where that is read."""
    if options.truncation_side is Side.RIGHT:
        return documents
    return [document[-LOOKED_AT:] for document in documents]


def _wishes(windows: WindowWishes | None, blank: BoolArray) -> WindowWishes | None:
    """A caller's order is of all documents; the inner stages see only those that are not blank."""
    if windows is None or windows.initial_order is None:
        return windows
    position = np.cumsum(~blank) - 1
    order = [int(position[index]) for index in windows.initial_order if 0 <= index < len(blank) and not blank[index]]
    return replace(windows, initial_order=order)
