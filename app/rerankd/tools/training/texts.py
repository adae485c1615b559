"""Sentences and keywords of English texts, as queries are made of them."""

import re
from typing import Final

# fmt: off
_FUNCTION_WORDS: Final = frozenset([
    "a", "an", "the", "of", "in", "on", "at", "to", "for", "from", "by", "with", "and", "or", "is", "are",
    "was", "were", "be", "been", "do", "does", "did", "has", "have", "had", "it", "its", "this", "that",
    "what", "which", "who", "whom", "whose", "when", "where", "why", "how", "many", "much", "s", "there",
    "their", "his", "her", "as", "can", "could", "would",
])
# fmt: on
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"(])")


def sentences_of(text: str) -> list[str]:
    return _SENTENCE_END.split(text)


def keywords_of(text: str) -> str:
    """The text without function words, as people write into search boxes."""
    words = text.rstrip("?. ").split()
    return " ".join(word for word in words if word.lower().strip("()") not in _FUNCTION_WORDS)
