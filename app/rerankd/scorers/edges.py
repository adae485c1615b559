"""Where the tokens of a text lie in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rerankd.scorers.base import Edges


def token_edges(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Edges]:
    """Return the edges of each text's tokens, without special tokens."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [_edges(encoding, text) for encoding, text in zip(encodings, texts, strict=True)]


def _edges(encoding: Any, text: str) -> Edges:  # noqa: ANN401 - tokenizers has no types
    """A token begins where the one before it ends; so the white space between them is lost to neither."""
    tokens = len(encoding.ids)
    characters = np.zeros(tokens + 1, dtype=np.int64)
    words = np.ones(tokens + 1, dtype=np.bool_)
    if tokens:
        ends = np.array(encoding.offsets, dtype=np.int64)[:, 1]
        # Several tokens may make up one character, and then end where it ends.
        characters[1:] = np.maximum.accumulate(ends)
        numbers = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
        words[1:-1] = numbers[1:] != numbers[:-1]
    characters[-1] = len(text)
    return Edges(characters, words)
