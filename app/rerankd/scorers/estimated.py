"""Texts for a model whose tokenizer only its server knows: tokens are estimated, four bytes of UTF-8 each."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from rerankd.errors import InvalidRequest
from rerankd.scorers.base import Edges
from rerankd.tasks.text_tokens import BYTES_PER_TOKEN, tokens_of

# More than services read: what is longer is cut by the service itself.
USUAL_LENGTH: Final = 32_768
_WHITE_SPACE: Final = [ord(character) for character in " \t\n\r\f\v\u00a0\u3000"]


def room_beside(texts: Sequence[str], *, max_length: int) -> int:
    """About how many tokens of a document fit beside these texts.

    Raises:
        InvalidRequest: none.
    """
    taken = sum(map(tokens_of, texts))
    if max_length - taken < 1:
        raise InvalidRequest(
            f"the query leaves no room for a document: it has about {taken} tokens, and the model reads "
            f"{max_length}; shorten it"
        )
    return max_length - taken


def unicode_of(text: str) -> str:
    """The text without what no JSON can carry: halves of surrogate pairs."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def first_tokens(text: str, tokens: int) -> tuple[str, int]:
    """The beginning of a text, and about how many tokens are not in it."""
    most = tokens * BYTES_PER_TOKEN
    if len(text) <= tokens:
        # No character has more than four bytes.
        return text, 0
    content = text.encode()
    if len(content) <= most:
        return text, 0
    kept = content[:most].decode("utf-8", "ignore")
    return kept, tokens_of(text) - tokens


def estimated_edges(text: str) -> Edges:
    """A token every four bytes; its edge moves back to a white space that is in the token before."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    firsts = np.flatnonzero(np.diff((np.cumsum(sizes) - sizes) // BYTES_PER_TOKEN, prepend=-1))
    positions = np.where(np.isin(codes, _WHITE_SPACE), np.arange(len(codes)), 0)
    spaces = np.maximum.accumulate(positions)[firsts] if len(codes) else firsts
    words = spaces > np.concatenate([firsts[:1], firsts[:-1]])
    characters = np.append(np.where(words, spaces, firsts), len(codes)).astype(np.int64)
    words[:1] = True
    return Edges(characters=characters, words=np.append(words, True))
