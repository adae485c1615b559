"""FIRST's objective (Reddy et al., 2024): the language model's loss, and ten times a RankNet with weights by rank."""

import torch
from torch.nn.functional import cross_entropy, softplus

RANKING_WEIGHT = 10.0


def ranking_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """RankNet over all pairs of a list, ranks i and j weighing 1 / (i + j): the mean over pairs, and then over lists.

    `scores` and `ranks` have shape [lists, window]; ranks begin at 1, and 0 is no text.
    """
    better = (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] > 0)
    weights = better / (ranks[:, :, None] + ranks[:, None, :]).clamp(min=1)
    # row: the better text; column: the worse one
    wrong = softplus(scores[:, None, :] - scores[:, :, None])
    return ((weights * wrong).sum(dim=(1, 2)) / better.sum(dim=(1, 2)).clamp(min=1)).mean()


def language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the identifiers that the answer consists of, one after the other; the mean over tokens.

    `logits` has shape [lists, steps, identifiers]; `targets` the identifier of each step, -1 behind the end.
    """
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def first_loss(logits: torch.Tensor, targets: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """The scores are the logits of the first step."""
    return language_loss(logits, targets) + RANKING_WEIGHT * ranking_loss(logits[:, 0], ranks)
