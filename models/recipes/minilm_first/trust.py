"""How far the first stage's order is to be trusted beside the cosine: fitted to lists, before anything is trained."""

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from models.recipes.minilm_first.prompts import WINDOW
from models.recipes.minilm_first.start import Start

COSINE_WEIGHT = 20.0


def fit_start(cosines: Sequence[Sequence[float]], relevant: Sequence[int]) -> Start:
    """The weights with which the relevant text of most lists comes first; each list is in the first stage's order."""
    table = torch.full((len(cosines), WINDOW), float("-inf"))
    for row, values in enumerate(cosines):
        table[row, : len(values)] = torch.tensor(values)
    places = torch.zeros(WINDOW, requires_grad=True)
    weight = torch.tensor(COSINE_WEIGHT, requires_grad=True)
    optimizer = torch.optim.LBFGS([places, weight], max_iter=100, line_search_fn="strong_wolfe")
    target = torch.tensor(relevant)

    def closure() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(table.clamp(min=-1e4) * weight + places, target)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    trust = places.detach() - places.detach().mean()
    return Start(float(weight.detach()), trust.tolist())
