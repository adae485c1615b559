"""Joins groups whose texts overlap in blocks: a few queries and all the documents that each of them is scored with.

A document is encoded once for all queries of a block, so that a block of 8 queries and 16 documents, 128 pairs, costs
little more than 24 pairs of their own.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from models.recipes.minilm_qa.data import Group

QUERIES = 8
DOCUMENTS = 16
# what a text counts for each group that has it, before its rank there is taken off
_WORTH_IN_A_GROUP = 40


@dataclass(frozen=True)
class Block:
    """Queries of one source with their documents. The relevant document of `queries[n]` is `documents[relevant[n]]`;
    `known[n]` are the positions of the other documents that `queries[n]`'s own group takes for irrelevant.
    """

    source: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[int, ...]
    known: tuple[frozenset[int], ...]


def blocks_of(groups: Sequence[Group], *, seed: int) -> list[Block]:
    """Return blocks of all groups, each distinct group in one of them; sources alternate by their shares."""
    rng = random.Random(seed)
    by_source: dict[str, list[Group]] = {}
    for group in dict.fromkeys(groups):
        by_source.setdefault(group.source, []).append(group)
    placed = []
    for of_source in by_source.values():
        made = [_block(members) for members in _clusters(of_source, rng)]
        rng.shuffle(made)
        placed += [((number + 0.5) / len(made), block) for number, block in enumerate(made)]
    return [block for _, block in sorted(placed, key=lambda one: one[0])]


def _clusters(groups: Sequence[Group], rng: random.Random) -> list[list[Group]]:
    """Split one source's groups greedily: each cluster is a group and those that share the most texts with it."""
    texts = [(group.positive, *group.negatives) for group in groups]
    holders: dict[str, set[int]] = {}
    for position, of_group in enumerate(texts):
        for text in of_group:
            holders.setdefault(text, set()).add(position)
    clusters, free = [], set(range(len(groups)))
    for first in rng.sample(range(len(groups)), len(groups)):
        if first not in free:
            continue
        shared = Counter(other for text in texts[first] for other in holders[text] if other in free)
        shared.pop(first)
        members = [first, *(other for other, _ in shared.most_common(QUERIES - 1))]
        rest = sorted(free.difference(members))
        members += rng.sample(rest, min(QUERIES - len(members), len(rest)))
        free.difference_update(members)
        clusters.append([groups[member] for member in members])
    return clusters


def _block(groups: Sequence[Group]) -> Block:
    """Take every group's relevant text, then the negatives that most of the groups share, the hardest first."""
    documents = dict.fromkeys(group.positive for group in groups)
    hardness = Counter[str]()
    for group in groups:
        for rank, text in enumerate(group.negatives):
            hardness[text] += _WORTH_IN_A_GROUP - rank
    for text, _ in hardness.most_common():
        if len(documents) >= DOCUMENTS:
            break
        documents.setdefault(text)
    position_of = {text: position for position, text in enumerate(documents)}
    return Block(
        source=groups[0].source,
        queries=tuple(group.query for group in groups),
        documents=tuple(documents),
        relevant=tuple(position_of[group.positive] for group in groups),
        known=tuple(
            frozenset(position_of[text] for text in group.negatives if text in position_of) for group in groups
        ),
    )
