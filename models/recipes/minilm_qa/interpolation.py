"""The shipped weights: a quarter of the way from the start to the end of training, and signals weighed by hand.

What an hour on question answering teaches costs some of what the start knew of web search. Models between the two in a
straight line keep most of both (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

Training cannot tell how much each signal is worth: its negatives are those that BM25 and the half-trained model put
first, so that both look worse than they are on a search's candidates. The soft match is worth most where it is given
no weight at the start, and training hardly moves it from there.
"""

from collections.abc import Sequence

import torch

from rerankd.tools.training.model import CrossEncoder

TRAINED_SHARE = 0.25
# of CrossEncoder.SIGNALS: cosine (always 1, see `scale_of`), BM25, soft match, share of the query's words that match
SIGNAL_WEIGHTS = (1.0, 0.39, 5.4, 0.02)


@torch.no_grad()
def move_towards(model: CrossEncoder, start: CrossEncoder, *, trained_share: float = TRAINED_SHARE) -> None:
    """Change `model` to the point between `start` and itself that is `trained_share` of the way from the start.

    The hidden layer stays: at the start nothing reads it, so that its first weights mean nothing.
    """
    began = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        if not name.startswith("hidden."):
            parameter.lerp_(began[name], 1.0 - trained_share)


@torch.no_grad()
def weigh_signals(model: CrossEncoder, weights: Sequence[float] = SIGNAL_WEIGHTS, *, scale: float = 1.0) -> None:
    """Give the head's signals these weights, times `scale`, and leave the rest of the head."""
    model.classifier.weight[0, : len(CrossEncoder.SIGNALS)] = scale * torch.tensor(weights)


def scale_of(model: CrossEncoder) -> float:
    """By how much a calibration that was folded in has stretched all weights alike: the cosine's was 1."""
    return float(model.classifier.weight[0, 0].detach())


@torch.no_grad()
def unfold(model: CrossEncoder) -> None:
    """Take a calibration's slope out of the classifier again, so that the cosine's weight is 1; 0 stays 0."""
    scale = scale_of(model)
    model.classifier.weight.div_(scale)
    model.classifier.bias.div_(scale)
