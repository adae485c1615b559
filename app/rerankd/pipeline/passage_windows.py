"""Decides where a long document is split into passages, and what their scores say about the document. Pure.

Passages are windows of tokens. Where a word ends near a window's edge the edge moves there, so that the text of a
passage has the same tokens by itself as inside of its document, and its score can be had by sending that text alone.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from rerankd.domain import Aggregation, FloatArray, IntArray
from rerankd.scorers.base import Edges

# An edge moves by at most this part of a window.
_SLACK: Final = 8


def windows(edges: Edges, *, tokens: int, length: int, overlap: int, limit: int) -> list[tuple[int, int]]:
    """The windows, as (start, end) in tokens, that cover a document's first `tokens`; at most `limit` of them.

    Each has at most `length` tokens and shares about `overlap`, at most half of `length`, with the one before. The
    last one reaches back as far as it may: a short rest would lack its context.
    """
    words = np.flatnonzero(edges.words[: tokens + 1])
    slack = length // _SLACK
    found: list[tuple[int, int]] = []
    start = 0
    while len(found) < limit:
        if tokens - start <= length:
            found.append((_last_start(words, tokens - length, found, slack), tokens))
            break
        end = _at_word(words, start + length, slack)
        found.append((start, end))
        start = _at_word(words, end - overlap, slack)
    return found


def last_window(edges: Edges, *, length: int) -> tuple[int, int]:
    """The window of at most `length` tokens at a document's end."""
    words = np.flatnonzero(edges.words)
    tokens = edges.tokens
    start = tokens - length
    return (_next_word(words, start, start + length // _SLACK) if start > 0 else 0, tokens)


def _last_start(words: IntArray, start: int, before: list[tuple[int, int]], slack: int) -> int:
    return _next_word(words, start, min(start + slack, before[-1][1])) if before else 0


def _at_word(words: IntArray, edge: int, slack: int) -> int:
    """The last end of a word that is at most `slack` tokens before an edge, or else the edge."""
    word = int(words[np.searchsorted(words, edge, side="right") - 1])
    return word if edge - word <= slack else edge


def _next_word(words: IntArray, edge: int, latest: int) -> int:
    place = int(np.searchsorted(words, edge))
    return int(words[place]) if place < len(words) and words[place] <= latest else edge


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The documents' scores, and the position of each one's best passage among all passages; shape [documents]."""

    values: FloatArray
    best: IntArray


def aggregate(values: FloatArray, counts: IntArray, *, aggregation: Aggregation, top_k: int) -> Aggregated:
    """The documents' raw scores from their passages' (shape [passages], document by document, `counts` of each)."""
    firsts = np.cumsum(counts) - counts
    if aggregation is Aggregation.FIRST:
        return Aggregated(values[firsts], firsts)
    owners = np.repeat(np.arange(len(counts)), counts)
    # Best first within each document, ties in reading order; a score that is no number goes first, so that it is seen.
    order = np.lexsort((np.where(np.isnan(values), -np.inf, -values), owners))
    best: IntArray = order[firsts]
    if aggregation is Aggregation.MAX:
        return Aggregated(values[best], best)
    used = counts if aggregation is Aggregation.MEAN else np.minimum(counts, top_k)
    ranks = np.arange(len(values)) - firsts[owners]
    kept = np.where(ranks < used[owners], values[order], 0).astype(np.float64)
    means = np.add.reduceat(kept, firsts) / used
    return Aggregated(means.astype(np.float32), best)
