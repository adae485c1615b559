"""Turns groups into lists as the service shows them: a window of texts in a first stage's order, and the right order.

Most lists come in BM25's order, so that the model learns when to leave it alone; some are shuffled, so that it learns
to read; some lack the relevant text, as most windows of a long list do; some are short, as last windows are.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from models.recipes.minilm_first.prompts import WINDOW
from models.recipes.minilm_first.teacher import COSINE_SCALE, Teacher
from models.recipes.minilm_qa.data import RANDOM_NEGATIVES, Group

SHUFFLED_SHARE = 0.15
WITHOUT_RELEVANT_SHARE = 0.1
SHORT_SHARE = 0.1
# The others show the best texts of BM25, the first window of a list.
SAMPLED_SHARE = 0.3
# By how much a negative may be nearer to the query than the relevant text before it is taken for unlabelled relevant.
DOUBT = 0.1


@dataclass(frozen=True)
class RankedList:
    """`texts` in the order in which the model is shown them; `order` are their positions, best first."""

    query: str
    texts: tuple[str, ...]
    order: tuple[int, ...]
    has_relevant: bool

    @property
    def ranks(self) -> list[int]:
        """The rank of each text, from 1."""
        return [self.order.index(position) + 1 for position in range(len(self.order))]


def ranked_list(group: Group, teacher: Teacher, rng: random.Random) -> RankedList:
    """A list of at least two texts: the relevant one is the best, the teacher orders the others."""
    negatives = _credible(group, teacher)
    count = rng.randint(2, WINDOW) if rng.random() < SHORT_SHARE else WINDOW
    has_relevant = rng.random() >= WITHOUT_RELEVANT_SHARE or len(negatives) < 2
    chosen = _chosen(negatives, count - has_relevant, rng)
    texts = [group.positive, *chosen] if has_relevant else chosen
    bm25 = teacher.bm25(group.source, group.query, texts)
    shown = sorted(range(len(texts)), key=lambda position: -bm25[position])
    if rng.random() < SHUFFLED_SHARE:
        rng.shuffle(shown)
    cosines = teacher.cosines(group.query, texts)
    worth = [COSINE_SCALE * cosine + score for cosine, score in zip(cosines, bm25, strict=True)]
    if has_relevant:
        worth[0] = float("inf")
    order = sorted(range(len(shown)), key=lambda place: -worth[shown[place]])
    return RankedList(group.query, tuple(texts[position] for position in shown), tuple(order), has_relevant)


def plain_list(group: Group, teacher: Teacher) -> RankedList:
    """The list that a held-out group is judged by: BM25's best texts in its order, nothing drawn."""
    texts = [group.positive, *group.negatives[: WINDOW - 1]]
    bm25 = teacher.bm25(group.source, group.query, texts)
    shown = sorted(range(len(texts)), key=lambda position: -bm25[position])
    best = shown.index(0)
    rest = [place for place in range(len(shown)) if place != best]
    return RankedList(group.query, tuple(texts[position] for position in shown), (best, *rest), has_relevant=True)


def _credible(group: Group, teacher: Teacher) -> list[str]:
    relevant, *others = teacher.cosines(group.query, [group.positive, *group.negatives])
    kept = [text for text, cosine in zip(group.negatives, others, strict=True) if cosine < relevant + DOUBT]
    return kept or list(group.negatives)


def _chosen(negatives: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """BM25's best, which come first in a group, or any of them, the random ones included."""
    if rng.random() < SAMPLED_SHARE:
        return rng.sample(negatives, min(count, len(negatives)))
    hard = negatives[:-RANDOM_NEGATIVES] or negatives
    return list(hard[:count])
