"""BM25 between a query and a text, with the word statistics of the text's source.

Robertson and Zaragoza 2009, with k1 = 0.9 and b = 0.4, which suit passages, over Porter stems.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

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
