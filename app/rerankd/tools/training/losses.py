"""Losses over groups of documents of one query each, one value a group.

`scores` and `gains` have shape [groups, documents]; a gain of 0 is that of a document that is not relevant. With gains
that are inverse-propensity estimates of relevance, `softmax` estimates its value under full information without bias,
since it adds up over relevant documents (Joachims, Swaminathan and Schnabel 2017, arXiv 1608.04468); the others do not.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch.nn.functional import log_softmax, softplus

# Of NeuralSort's relaxed permutation: the smaller, the nearer to sorting.
TEMPERATURE: Final = 1.0

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def softmax(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each relevant document among all of the group, times its gain (ListNet's top-1 form)."""
    return -(gains * log_softmax(scores, dim=1)).sum(dim=1)


def ranknet(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Logistic loss over pairs of different gains (Burges et al. 2005), their mean."""
    better = (gains[:, :, None] > gains[:, None, :]).to(scores.dtype)
    return (better * _wrongness(scores)).sum(dim=(1, 2)) / better.sum(dim=(1, 2)).clamp(min=1.0)


def lambda_loss(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """RankNet's pairs, each weighted by what swapping it changes of nDCG (Wang et al. 2018; LiPO, arXiv 2402.01878)."""
    discounts = _discounts(scores.shape[1], scores)
    ranks = (-scores.detach()).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    at_rank = discounts[ranks]
    ideal = _ideal(gains, discounts)
    swapped = (gains[:, :, None] - gains[:, None, :]) * (at_rank[:, :, None] - at_rank[:, None, :]).abs()
    return (swapped.clamp(min=0.0) * _wrongness(scores)).sum(dim=(1, 2)) / ideal


def neural_ndcg(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """1 - nDCG of NeuralSort's relaxed permutation (Pobrotyn and Białobrzeski 2021, arXiv 2102.07831)."""
    size = scores.shape[1]
    discounts = _discounts(size, scores)
    distances = (scores[:, :, None] - scores[:, None, :]).abs().sum(dim=2)
    scaling = size + 1 - 2 * torch.arange(1, size + 1, device=scores.device, dtype=scores.dtype)
    permutation = ((scaling[None, :, None] * scores[:, None, :] - distances[:, None, :]) / TEMPERATURE).softmax(dim=2)
    sorted_gains = (permutation @ gains[:, :, None])[:, :, 0]
    return 1.0 - (sorted_gains * discounts).sum(dim=1) / _ideal(gains, discounts)


LOSSES: Final[Mapping[str, Loss]] = {
    "softmax": softmax,
    "ranknet": ranknet,
    "lambda": lambda_loss,
    "neural-ndcg": neural_ndcg,
}


def margin_mse(scores: torch.Tensor, gains: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared error of the margins between relevant and other documents, against a teacher's scores of the same shape
    (Hofstätter et al. 2020, arXiv 2010.02666).
    """
    pairs = ((gains[:, :, None] > 0) & (gains[:, None, :] == 0)).to(scores.dtype)
    errors = (_margins(scores) - _margins(teacher)) ** 2
    return (pairs * errors).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1.0)


def curriculum_weight(easiness: float, progress: float) -> float:
    """How much a query counts: D (1 - e/m) + e/m, where D is how easy it is and e/m how much of the curriculum is over
    (MacAvaney et al. 2020, arXiv 2004.14269).
    """
    over = min(1.0, progress)
    return easiness * (1.0 - over) + over


def _margins(scores: torch.Tensor) -> torch.Tensor:
    return scores[:, :, None] - scores[:, None, :]


def _wrongness(scores: torch.Tensor) -> torch.Tensor:
    """Of each pair, [groups, better, worse]: how far the worse is above the better, as a logistic loss."""
    return softplus(-_margins(scores))


def _discounts(size: int, like: torch.Tensor) -> torch.Tensor:
    return 1.0 / torch.log2(torch.arange(2, size + 2, device=like.device, dtype=like.dtype))


def _ideal(gains: torch.Tensor, discounts: torch.Tensor) -> torch.Tensor:
    return (gains.sort(dim=1, descending=True).values * discounts).sum(dim=1).clamp(min=1e-6)
