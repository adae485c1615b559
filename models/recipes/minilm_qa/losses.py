"""The three terms of the loss, over logits of shape [groups, texts] whose first column is the relevant text."""

from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax, softmax

POINTWISE_WEIGHT = 0.15


@dataclass(frozen=True)
class GroupLogits:
    """A step's logits, the teacher's, and which columns hold a text at all."""

    student: torch.Tensor
    teacher: torch.Tensor
    present: torch.Tensor


def localized_contrastive(logits: GroupLogits) -> torch.Tensor:
    """Cross-entropy of the relevant text among its hard negatives (Gao, Dai, Callan 2021, arXiv 2101.08751)."""
    target = torch.zeros(len(logits.student), dtype=torch.long, device=logits.student.device)
    return cross_entropy(_masked(logits.student, logits.present), target)


def distillation(logits: GroupLogits) -> torch.Tensor:
    """KL divergence from the teacher's distribution over the group (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""
    teacher = softmax(_masked(logits.teacher, logits.present), dim=1)
    student = log_softmax(_masked(logits.student, logits.present), dim=1)
    return kl_div(student, teacher, reduction="batchmean")


def pointwise(logits: GroupLogits) -> torch.Tensor:
    """Binary cross-entropy; ties down the absolute level, which the two listwise terms leave free."""
    labels = torch.zeros_like(logits.student)
    labels[:, 0] = 1.0
    return binary_cross_entropy_with_logits(logits.student[logits.present], labels[logits.present])


def total_loss(logits: GroupLogits, *, teacher_weight: float) -> torch.Tensor:
    return localized_contrastive(logits) + teacher_weight * distillation(logits) + POINTWISE_WEIGHT * pointwise(logits)


def _masked(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    # a finite floor, because -inf times a probability of zero is NaN in the divergence
    return scores.masked_fill(~present, -1e4)
