"""The extension module that module.cpp defines."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

class WordPiece:
    """BERT's pre-tokenizer and WordPiece over `vocabulary`: greedy, the longest piece first. Pieces within a word begin
    with `prefix`. A word of more than `max_characters`, or with a part that is no piece, is the token `unknown`.
    `added` are tokens that the tokenizer looks for before anything else, without white space in them. Safe to use from
    threads.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        *,
        prefix: str,
        unknown: int,
        max_characters: int,
        lowercase: bool,
        added: Sequence[str],
    ) -> None: ...
    def encode(
        self, texts: Sequence[str], others: Callable[[list[str]], Sequence[NDArray[np.int32]]]
    ) -> list[NDArray[np.int32]]:
        """The ids of every text's tokens, without special ones. `others` gives those of what is not plain: printable
        ASCII and ASCII's white space, without added tokens.

        Other threads of Python run meanwhile.
        """

    def is_plain(self, texts: Sequence[str]) -> bool:
        """Whether nothing in any text is for `others`."""
