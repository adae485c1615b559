"""Which documents a query's relevant ones are told from: candidates of the first stage, and negatives among them.

Without a teacher, negatives come from the tail of the candidates, where few unlabelled relevant documents are
(DUQGen). A teacher tells those apart: all candidates that it scores below the relevant documents are negatives
(denoised hard negatives, RocketQA, Qu et al. 2021, arXiv 2010.08191).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rerankd.tools.adapting.lessons import Corpus, Lesson
from rerankd.tools.training.lexical import Bm25Index

# The second half of the candidates.
_TAIL: Final = 0.5
_MOST_NEGATIVES: Final = 50
_FEWEST_NEGATIVES: Final = 4

# By query, then by document.
TeacherScores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What one query teaches: relevant texts with their gains, and negatives; `easiness` is the reciprocal rank of the
    first relevant text in the first stage. `teacher` has a teacher's scores by text, if there is one.
    """

    query: str
    relevant: Sequence[tuple[str, float]]
    negatives: Sequence[str]
    easiness: float
    teacher: Mapping[str, float]


class FirstStage:
    """BM25 over the corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self._ids = list(corpus)
        self._index = Bm25Index([document.full_text for document in corpus.values()])

    def with_candidates(self, lesson: Lesson, *, depth: int) -> Lesson:
        best = self._index.best(lesson.query, depth=depth)
        return lesson.with_candidates([self._ids[place] for place, _ in best])


def is_found(lesson: Lesson) -> bool:
    """Whether a relevant document is among the candidates; a query that does not find its own document says little of
    it (round-trip consistency, Promptagator).
    """
    return any(document in lesson.gains for document in lesson.candidates)


def group_of(lesson: Lesson, corpus: Corpus, teacher: TeacherScores | None, *, seed: int) -> Group:
    """The lesson's texts. Where the candidates have too few negatives, documents drawn from the corpus join them."""
    ranks = [rank for rank, document in enumerate(lesson.candidates, start=1) if document in lesson.gains]
    others = [document for document in lesson.candidates if document not in lesson.gains]
    scores = (teacher or {}).get(lesson.query_id, {})
    if teacher is None:
        negatives = others[int(len(others) * _TAIL) :]
    else:
        bound = min((scores[name] for name in lesson.gains if name in scores), default=0.0)
        negatives = [name for name in others if name in scores and scores[name] < bound]
    rng = random.Random(f"{seed} {lesson.query_id}")
    relevant = {lesson.text_of(name, corpus): gain for name, gain in lesson.gains.items()}
    if len(negatives) < _FEWEST_NEGATIVES:
        drawn = rng.sample(sorted(corpus), min(len(corpus), 2 * _FEWEST_NEGATIVES))
        negatives += [name for name in drawn if name not in lesson.gains and name not in lesson.candidates]
    texts = {lesson.text_of(name, corpus): scores.get(name, 0.0) for name in negatives[:_MOST_NEGATIVES]}
    kept = [text for text in texts if text not in relevant and text.strip()]
    taught = {lesson.text_of(name, corpus): scores.get(name, 0.0) for name in lesson.gains} | texts
    return Group(
        query=lesson.query,
        relevant=list(relevant.items()),
        negatives=kept,
        easiness=1.0 / min(ranks) if ranks else 0.0,
        teacher=taught if teacher is not None else {},
    )
