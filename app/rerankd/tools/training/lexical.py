"""BM25 between a query and a text, with the word statistics of the text's source.

Robertson and Zaragoza 2009, with k1 = 0.9 and b = 0.4, which suit passages, over Porter stems.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import snowballstemmer

K1 = 0.9
B = 0.4

_WORD = re.compile(r"\w+")
_stemmer = snowballstemmer.stemmer("porter")


class Bm25:
    """Scores texts for queries; rare words are those that few of `texts` hold."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts_with: Counter[str] = Counter()
        self._texts = words = 0
        for text in texts:
            stems = stems_of(text)
            self._texts_with.update(set(stems))
            self._texts += 1
            words += len(stems)
        self._mean_words = words / self._texts

    def score(self, query: str, text: str) -> float:
        counts = Counter(stems_of(text))
        room = K1 * (1.0 - B + B * counts.total() / self._mean_words)
        wanted = {stem: counts[stem] for stem in set(stems_of(query)) if counts[stem]}
        return sum(self._weight(stem) * count * (K1 + 1.0) / (count + room) for stem, count in wanted.items())

    def _weight(self, stem: str) -> float:
        return rarity(self._texts_with[stem], self._texts)


class Bm25Index:
    """Ranks a whole collection for a query; `texts` are numbered from 0."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(stems_of(text)) for text in texts]
        lengths = np.array([count.total() for count in counts])
        room = K1 * (1.0 - B + B * lengths / max(1.0, lengths.mean()))
        places: dict[str, list[int]] = defaultdict(list)
        for place, count in enumerate(counts):
            for found in count:
                places[found].append(place)
        self._texts = len(texts)
        self._postings = {}
        for found, holding in places.items():
            times = np.array([counts[place][found] for place in holding])
            weight = rarity(len(holding), len(texts))
            self._postings[found] = np.array(holding), weight * times * (K1 + 1) / (times + room[holding])

    def best(self, query: str, *, depth: int) -> list[tuple[int, float]]:
        """Return numbers and scores of the best texts, of equal ones the first; texts without a match come last."""
        scores = np.zeros(self._texts)
        for stem in sorted(set(stems_of(query)) & self._postings.keys()):
            places, of_stem = self._postings[stem]
            scores[places] += of_stem
        return [(place, float(scores[place])) for place in np.argsort(-scores, kind="stable")[:depth].tolist()]


def rarity(texts_with: int, texts: int) -> float:
    """Return the inverse document frequency of a word that `texts_with` of the `texts` hold."""
    return math.log(1.0 + (texts - texts_with + 0.5) / (texts_with + 0.5))


def stems_of(text: str) -> list[str]:
    """Return the Porter stems of a text's words, in their order."""
    return [stem(word) for word in _WORD.findall(text.lower())]


@cache
def stem(word: str) -> str:
    """Return the word's Porter stem; the word is in lower case."""
    stemmed: str = _stemmer.stemWord(word)
    return stemmed
