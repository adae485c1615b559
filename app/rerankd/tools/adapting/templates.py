"""Queries made of the documents themselves, without a network: titles, questions, keywords and sentences. Pure.

What the query was taken from is no longer in the document, so that the query is not found by its very words alone
(inverse cloze task, Lee et al. 2019, arXiv 1906.00300).
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from rerankd.tools.adapting.lessons import Corpus, Document, Lesson, renumbered
from rerankd.tools.training.texts import keywords_of

# A query and the text that is left of its document.
Taken = tuple[str, str]

_SENTENCE_WORDS: Final = range(6, 41)
_KEYWORDS: Final = range(2, 13)
_FEWEST_SENTENCES: Final = 3
# A mark before a capital, or one that stands alone, as old collections have it: "... were found . the flow ...".
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"(])|(?<=\s[.!?])\s+")
# Of a text of few sentences a run of words is taken, a third of it.
_SPAN_WORDS: Final = range(4, 13)
_SPAN_SHARE: Final = 3
# "The boundary layer is a thin region ...": what is named, how it is said, and what is said of it.
_DEFINITION: Final = re.compile(r"(?P<named>(?:[\w-]+ ){0,4}[\w-]+) (?P<verb>is|are|was|were) (?:an?|the|one) [a-z]")
_POINTING: Final = re.compile(r"(it|this|that|these|those|there|they|he|she|we|which|one)\b", re.IGNORECASE)


def template_lessons(document_ids: Iterable[str], corpus: Corpus, *, seed: int) -> list[Lesson]:
    """At most one lesson for each document, of a kind drawn for it among those that it has."""
    lessons = []
    for document_id in document_ids:
        taken = _take(corpus[document_id], random.Random(f"{seed} {document_id}"))
        if taken is not None:
            query, rest = taken
            lessons.append(
                Lesson(
                    query_id=document_id,
                    query=query,
                    gains={document_id: 1.0},
                    family=document_id,
                    reads={document_id: rest},
                )
            )
    return renumbered(lessons, prefix="template-")


def _take(document: Document, rng: random.Random) -> Taken | None:
    kinds = list(_KINDS)
    rng.shuffle(kinds)
    return next((taken for kind in kinds if (taken := _KINDS[kind](document, rng)) is not None), None)


def _title(document: Document, _rng: random.Random) -> Taken | None:
    title = document.title.strip().rstrip(".")
    return (title, document.text) if title and document.text.strip() else None


def _question(document: Document, rng: random.Random) -> Taken | None:
    """What a sentence defines, as a question; the sentence is its answer, and stays."""
    found = [match for sentence in _sentences(document.text) if (match := _DEFINITION.match(sentence))]
    found = [match for match in found if not _POINTING.match(match["named"])]
    if not found:
        return None
    match = rng.choice(found)
    named = re.sub(r"^(the|a|an) ", "", match["named"], flags=re.IGNORECASE)
    return f"what {match['verb']} {named}?", document.text


def _sentence(document: Document, rng: random.Random) -> Taken | None:
    sentences = _sentences(document.text)
    if len(sentences) < _FEWEST_SENTENCES:
        return _span(document, rng)
    usable = [place for place, sentence in enumerate(sentences) if len(sentence.split()) in _SENTENCE_WORDS]
    if not usable:
        return None
    query = sentences.pop(rng.choice(usable))
    return query, _titled(document, " ".join(sentences))


def _span(document: Document, rng: random.Random) -> Taken | None:
    """Words that follow one another, where there are too few sentences to take a whole one."""
    words = document.text.split()
    length = min(len(words) // _SPAN_SHARE, _SPAN_WORDS.stop - 1)
    if length < _SPAN_WORDS.start:
        return None
    start = rng.randrange(len(words) - length + 1)
    rest = [*words[:start], *words[start + length :]]
    return " ".join(words[start : start + length]), _titled(document, " ".join(rest))


def _titled(document: Document, text: str) -> str:
    return f"{document.title}. {text}" if document.title else text


def _sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(text)


def _keywords(document: Document, rng: random.Random) -> Taken | None:
    taken = _sentence(document, rng)
    if taken is None:
        return None
    words = keywords_of(taken[0]).split()
    return (" ".join(words[: _KEYWORDS.stop - 1]), taken[1]) if len(words) in range(_KEYWORDS.start, 99) else None


_KINDS: Final[Mapping[str, Callable[[Document, random.Random], Taken | None]]] = {
    "title": _title,
    "question": _question,
    "keywords": _keywords,
    "sentence": _sentence,
}
