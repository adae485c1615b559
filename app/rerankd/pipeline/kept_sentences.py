"""Decides which sentences of a document are kept, and in which blocks they are read. Pure.

The procedure is that of Provence's authors: a token is kept whose probability is above the threshold, and a sentence is
kept if the share of such tokens in it is above the same threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rerankd.domain import BoolArray, FloatArray, IntArray
from rerankd.pipeline.sentences import sentences
from rerankd.scorers.base import Edges
from rerankd.scorers.ranking import sigmoid


@dataclass(frozen=True, slots=True)
class Block:
    """Characters `start` to `end` of a document, which are read at once, and the sentences in it, which are characters
    of the document too.
    """

    start: int
    end: int
    sentences: Sequence[tuple[int, int]]

    def token_bounds(self, edges: Edges) -> IntArray:
        """How many of the block's tokens end before each of its sentences does, shape [1 + sentences], from 0; `edges`
        are those of the block's own text.
        """
        ends = np.array([end - self.start for _, end in self.sentences], dtype=np.int64)
        bounds = np.searchsorted(edges.characters[1:], ends, side="right")
        bounds[-1] = edges.tokens
        return np.concatenate([[0], bounds])


def blocks_of(text: str, edges: Edges, *, length: int, limit: int) -> list[Block]:
    """The blocks in which a text is read: all of it if it has at most `length` tokens, or else at most `limit` blocks,
    each of as many whole sentences as fit. Longer sentences are cut. A text without a sentence has no block.
    """
    found = sentences(text, edges, length=length)
    if not found:
        return []
    if edges.tokens <= length:
        return [Block(0, len(text), found)]
    tokens = np.searchsorted(edges.characters[1:], [end for _, end in found])
    blocks: list[Block] = []
    first, before = 0, 0
    for index in range(len(found)):
        if tokens[index] + 1 - before > length and index > first:
            blocks.append(Block(found[first][0], found[index - 1][1], found[first:index]))
            first, before = index, int(tokens[index - 1]) + 1
            if len(blocks) == limit:
                return blocks
    return [*blocks, Block(found[first][0], found[-1][1], found[first:])]


def are_kept(log_odds: FloatArray, bounds: IntArray, *, threshold: float) -> BoolArray:
    """Which sentences of a block are kept, by the log-odds of its tokens, shape [tokens], and its `token_bounds`."""
    # What was not read is not kept.
    bounds = np.minimum(bounds, len(log_odds))
    counts = np.concatenate([[0], np.cumsum(sigmoid(log_odds) > threshold)])[bounds]
    shares = np.diff(counts) / np.maximum(np.diff(bounds), 1)
    kept: BoolArray = shares > threshold
    return kept


def joined_spans(sentences: Sequence[tuple[int, int]], kept: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """The spans of kept sentences; neighbours and the white space between them are one span."""
    spans: list[tuple[int, int]] = []
    continues = False
    for (start, end), keep in zip(sentences, kept, strict=True):
        if keep and continues:
            spans[-1] = (spans[-1][0], end)
        elif keep:
            spans.append((start, end))
        continues = keep
    return tuple(spans)
