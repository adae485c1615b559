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
from rerankd.domain import BoolArray, Document, ScoreOptions, Scores, Side, Terms, WindowWishes
from rerankd.errors import InvalidRequest
from rerankd.pipeline.chunks import chunks
from rerankd.pipeline.stage import Stage
from rerankd.scorers.visible import LOOKED_AT, is_plain, visible_characters

# Whether a tokenizer leaves nothing of a few characters.
Drops = Callable[[str], bool]

_TEXTS_PER_CALL: Final = 1000
_CHARACTERS_PER_CALL: Final = 1_000_000
# No tokenizer drops this many different characters.
_MOST_DIFFERENT: Final = 256


def drops_nothing(_text: str) -> bool:
    """For what has no tokenizer."""
    return False


class BlankStage:
    """Wraps the stages that score. Blank documents get a value below all others, and `Scores.blank` names them."""

    def __init__(self, inner: Stage, tokenizing: SharedWorker, *, drops: Drops) -> None:
        self._inner = inner
        self._tokenizing = tokenizing
        self._drops = drops

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
        options = replace(options, windows=_wishes(options.windows, blank))
        scores = await self._inner.score(query, texts, options) if texts else Scores.unread(0)
        return scores.scatter(written, documents=len(documents))

    async def _blank_among(self, texts: Sequence[str], terms: Terms) -> list[int]:
        """The positions of blank texts. A thread examines the few that do not begin with a letter or a digit."""
        doubtful: list[int] = []
        async for span in in_chunks(len(texts)):
            doubtful += [
                index
                for index, text in enumerate(texts[span], start=span.start)
                if not is_plain(text) and not isinstance(text, Document)
            ]
        if not doubtful:
            return []
        parts = [texts[index][:LOOKED_AT] for index in doubtful]
        blank: list[int] = []
        for span, share in chunks(parts, terms, most=_TEXTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            blanks = await self._tokenizing.run(share, _are_blank, parts[span], self._drops)
            blank += [index for index, empty in zip(doubtful[span], blanks, strict=True) if empty]
        return blank


def _read_parts(documents: Sequence[str], options: ScoreOptions) -> Sequence[str]:
    """What is looked at of each document: its beginning, or its end where that is read."""
    if options.truncation_side is Side.RIGHT:
        return documents
    return [document[-LOOKED_AT:] for document in documents]


def _are_blank(texts: Sequence[str], drops: Drops) -> list[bool]:
    return [_is_blank(text, drops) for text in texts]


def _is_blank(text: str, drops: Drops) -> bool:
    characters = visible_characters(text)
    if not characters:
        return True
    if len(characters) > _MOST_DIFFERENT or any(character.isalnum() for character in characters):
        return False
    return drops("".join(sorted(characters)))


def _wishes(windows: WindowWishes | None, blank: BoolArray) -> WindowWishes | None:
    """A caller's order is of all documents; the inner stages see only those that are not blank."""
    if windows is None or windows.initial_order is None:
        return windows
    position = np.cumsum(~blank) - 1
    order = [int(position[index]) for index in windows.initial_order if 0 <= index < len(blank) and not blank[index]]
    return replace(windows, initial_order=order)
