"""FIRST's objective (Reddy et al. 2024, arXiv 2406.15657): the order in the logits at the first identifier."""

import torch
from torch.nn.functional import cross_entropy, softplus

ORDER_WEIGHT = 10.0


def order_loss(logits: torch.Tensor) -> torch.Tensor:
    """Return the weighted RankNet loss of a window's identifiers, [passages], which are in the teacher's order.

    The mean over pairs i above j of softplus(s_j - s_i) / (i + j), with ranks from 1: the first places weigh most.
    """
    ranks = torch.arange(1, len(logits) + 1, device=logits.device)
    above, below = torch.triu_indices(len(logits), len(logits), offset=1, device=logits.device)
    return (softplus(logits[below] - logits[above]) / (ranks[above] + ranks[below])).mean()


def first_loss(logits: torch.Tensor, answer: torch.Tensor, identifiers: torch.Tensor) -> torch.Tensor:
    """Return the loss of a window: that of the whole order as text, and 10 times that of its first token's logits.

    `logits`, [tokens, vocabulary], predict the tokens of `answer`; `identifiers` are in the teacher's order.
    """
    logits = logits.float()
    return cross_entropy(logits, answer) + ORDER_WEIGHT * order_loss(logits[0, identifiers])
