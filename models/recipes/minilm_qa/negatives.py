"""Decides which texts a group's relevant text is told from: hard ones, but no unlabelled relevant ones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from models.recipes.minilm_qa.data import RANDOM_NEGATIVES, Group
from models.recipes.minilm_qa.teacher import Teacher
from rerankd.tools.training.model import CrossEncoder, score_pairs

HARD_NEGATIVES = 4
EASY_NEGATIVES = 1
NEAR_DUPLICATE = 0.95
TEACHER_DOUBT = 0.1
MINING_MAX_TOKENS = 192

# sources whose labels leave relevant texts out; of the others a text is known not to answer
LOOSELY_LABELLED = frozenset({"medquad", "fever", "pubmedqa", "skeptics", "scifact"})


@dataclass(frozen=True)
class TrainingGroup:
    """A group as one step sees it: texts[0] is the relevant one; `teacher` holds the teacher's logits."""

    query: str
    texts: tuple[str, ...]
    teacher: torch.Tensor


def choose(group: Group, teacher: Teacher, rng: random.Random, *, mined: bool) -> TrainingGroup:
    """Choose the negatives: the hardest of a mined group, else a sample of BM25's; a random one comes on top."""
    texts = (group.positive, *group.negatives)
    cosines = teacher.cosines(group.query, texts)
    kept = _credible(group, cosines, teacher)
    easy = [position for position in kept if position > len(group.negatives) - RANDOM_NEGATIVES]
    hard = [position for position in kept if position not in easy]
    if not mined:
        hard = rng.sample(hard, min(HARD_NEGATIVES, len(hard)))
    order = [0, *hard[:HARD_NEGATIVES], *easy[:EASY_NEGATIVES]]
    chosen = [texts[position] for position in order]
    return TrainingGroup(group.query, tuple(chosen), teacher.logits(group.source, group.query, chosen))


def _credible(group: Group, cosines: torch.Tensor, teacher: Teacher) -> list[int]:
    """Return the positions of negatives that are no copy of the relevant text and that the teacher does not doubt."""
    likeness = teacher.cosines(group.positive, group.negatives)
    credible = likeness < NEAR_DUPLICATE
    if group.source in LOOSELY_LABELLED:
        credible &= cosines[1:] < cosines[0] + TEACHER_DOUBT
    return [int(position) + 1 for position in credible.nonzero()[:, 0]]


def mine(groups: Sequence[Group], model: CrossEncoder, tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    """Order the hard negatives by the model's own scores, and drop those that it puts above the relevant text.

    What the half-trained model ranks above the labelled text is most often an unlabelled relevant text
    (denoised hard negatives, RocketQA, Qu et al. 2021, arXiv 2010.08191).
    """
    pairs = [(group.query, text) for group in groups for text in (group.positive, *_hard(group))]
    logits = score_pairs(
        model, tokenizer, pairs, max_tokens=MINING_MAX_TOKENS, bfloat16=True, progress="mining"
    ).tolist()
    mined, start = [], 0
    for group in groups:
        hard = _hard(group)
        positive, *scores = logits[start : start + 1 + len(hard)]
        start += 1 + len(hard)
        ranked = sorted(zip(scores, hard, strict=True), reverse=True)
        kept = [text for score, text in ranked if score < positive]
        easy = group.negatives[len(hard) :]
        mined.append(Group(group.source, group.query, group.positive, (*kept, *easy)))
    return mined


def _hard(group: Group) -> tuple[str, ...]:
    return group.negatives[:-RANDOM_NEGATIVES]
