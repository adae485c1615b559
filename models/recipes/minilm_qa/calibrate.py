"""Makes sigmoid(logit) a threshold: 0.5 lies where relevant and not relevant are equally likely.

Platt scaling (Platt 1999) on held-out groups, folded into the classifier, so that the shipped weights need no
further step and the order of the documents is as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase

from models.recipes.minilm_qa.data import Group
from rerankd.tools.training.model import CrossEncoder, score_pairs

BINS = 10
NEGATIVES = 2
MAX_TOKENS = 192


@dataclass(frozen=True)
class HeldOut:
    """Logits of held-out pairs, which of them are relevant, and weights that make the two classes equal."""

    logits: torch.Tensor
    relevant: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Calibration:
    """calibrated = slope * logit + bias, and how good it is on the half of the pairs that it was not fitted to."""

    slope: float
    bias: float
    accuracy: float
    expected_error: float
    reliability: tuple[tuple[float, float], ...]


def score_held_out(model: CrossEncoder, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]) -> HeldOut:
    """Score every held-out group's texts; each group counts as much in the one class as in the other."""
    negatives = [group.negatives[:NEGATIVES] for group in groups]
    pairs = [(g.query, text) for g, texts in zip(groups, negatives, strict=True) for text in (g.positive, *texts)]
    logits = score_pairs(model, tokenizer, pairs, max_tokens=MAX_TOKENS, bfloat16=True, progress="held out")
    relevant = torch.cat([torch.tensor([1.0] + [0.0] * len(texts)) for texts in negatives])
    weights = torch.cat([torch.tensor([1.0] + [1.0 / len(texts)] * len(texts)) for texts in negatives])
    return HeldOut(logits, relevant, weights)


def calibrate(held_out: HeldOut) -> Calibration:
    """Fit on one half of the pairs, drawn at random, and report on the other."""
    held_out, half = _shuffled(held_out), len(held_out.logits) // 2
    slope, bias = _fit(held_out, slice(0, half))
    scores = torch.sigmoid(slope * held_out.logits[half:] + bias)
    relevant, weights = held_out.relevant[half:], held_out.weights[half:]
    right = ((scores >= 0.5) == (relevant == 1.0)).float()
    reliability, error = _reliability(scores, relevant, weights)
    return Calibration(slope, bias, float((right * weights).sum() / weights.sum()), error, reliability)


def fold(calibration: Calibration, model: CrossEncoder) -> None:
    """Change the model's classifier so that its logits are the calibrated ones."""
    with torch.no_grad():
        model.classifier.weight.mul_(calibration.slope)
        model.classifier.bias.mul_(calibration.slope).add_(calibration.bias)


def draw_reliability(calibration: Calibration, path: Path) -> None:
    """Write a PNG: how many of the pairs with a score are relevant."""
    figure = Figure(figsize=(4.0, 4.0), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1, label="calibrated")
    means, shares = zip(*calibration.reliability, strict=True)
    axes.plot(means, shares, "o-", color="#1b6ca8", label=f"minilm-qa (error {calibration.expected_error:.3f})")
    axes.set(xlabel="relevance_score", ylabel="share that is relevant", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _shuffled(held_out: HeldOut) -> HeldOut:
    order = torch.randperm(len(held_out.logits), generator=torch.Generator().manual_seed(0))
    return HeldOut(held_out.logits[order], held_out.relevant[order], held_out.weights[order])


def _fit(held_out: HeldOut, part: slice) -> tuple[float, float]:
    slope_and_bias = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([slope_and_bias], max_iter=100, line_search_fn="strong_wolfe")
    logits, relevant, weights = held_out.logits[part], held_out.relevant[part], held_out.weights[part]

    def closure() -> float:
        optimizer.zero_grad()
        scaled = slope_and_bias[0] * logits + slope_and_bias[1]
        loss = binary_cross_entropy_with_logits(scaled, relevant, weights)
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    slope, bias = slope_and_bias.tolist()
    return slope, bias


def _reliability(
    scores: torch.Tensor, relevant: torch.Tensor, weights: torch.Tensor
) -> tuple[tuple[tuple[float, float], ...], float]:
    """Return (mean score, share of relevant) for each bin of scores, and the expected calibration error."""
    bins = (scores * BINS).long().clamp(max=BINS - 1)
    rows, error = [], 0.0
    for number in range(BINS):
        inside = weights * (bins == number)
        if inside.sum() > 0:
            mean = float((scores * inside).sum() / inside.sum())
            share = float((relevant * inside).sum() / inside.sum())
            rows.append((mean, share))
            error += abs(mean - share) * float(inside.sum() / weights.sum())
    return tuple(rows), error
