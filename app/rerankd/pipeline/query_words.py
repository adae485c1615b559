"""Decides which parts of a document speak of a query's words. Pure, and cheap beside any model.

Extracts: Zou et al., "Pre-trained Language Model based Ranking in Baidu Search", KDD 2021 (QUITE): take the sentence
with the most weight of query words, weigh its words less from then on, and go on until the extract is full.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from math import log
from typing import Final

import numpy as np

from rerankd.domain import FloatArray

# Scripts that put nothing between their words: each character counts as one.
_UNSPACED: Final = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD: Final = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
# What a word that is in the extract already still counts.
_DECAY: Final = 0.5
# BM25's usual saturation, and how much a part's length matters.
_SATURATION: Final = 1.2
_LENGTH: Final = 0.75


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def overlaps(query: Collection[str], parts: Sequence[str]) -> FloatArray:
    """How much each part of one document speaks of the query's words: BM25 with the parts as the collection, shape
    [parts].
    """
    counted = [Counter(words_of(part)) for part in parts]
    weights = _weights(query, counted)
    lengths = np.array([counts.total() for counts in counted], dtype=np.float64)
    norms = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / max(1.0, lengths.mean()))
    scores = np.zeros(len(parts), dtype=np.float32)
    for part, (counts, norm) in enumerate(zip(counted, norms.tolist(), strict=True)):
        found = ((weight, counts[word]) for word, weight in weights.items() if counts[word])
        scores[part] = sum(weight * times * (_SATURATION + 1) / (times + norm) for weight, times in found)
    return scores


def extract(query: Collection[str], parts: Sequence[str], lengths: Sequence[int], *, room: int) -> list[int]:
    """Which sentences of a document make up its extract of at most `room` tokens, in their order; `lengths` are in
    tokens. What is left of the room once no sentence has a query word is filled from the document's beginning.
    """
    words = [set(words_of(part)) for part in parts]
    weights = _weights(query, words)
    left = [index for index in range(len(parts)) if lengths[index] <= room]
    chosen: list[int] = []
    while left:
        # The first of equal ones.
        best = max(left, key=lambda index: sum(weight for word, weight in weights.items() if word in words[index]))
        chosen.append(best)
        room -= lengths[best]
        left = [index for index in left if index != best and lengths[index] <= room]
        weights = {word: weight * _DECAY if word in words[best] else weight for word, weight in weights.items()}
    return sorted(chosen)


def _weights(query: Collection[str], parts: Sequence[Collection[str]]) -> dict[str, float]:
    """The weight of each query word that is in some part: the rarer, the more."""
    found = {word: sum(word in part for part in parts) for word in dict.fromkeys(query)}
    return {word: log(1 + (len(parts) - count + 0.5) / (count + 0.5)) for word, count in found.items() if count}
