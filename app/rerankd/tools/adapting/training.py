"""Trains a model on groups, step by step. What a step does depends on the seed and its number alone, so that a stopped
run that continues from a checkpoint ends as one that was never stopped.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.utils import clip_grad_norm_

from rerankd.tools.adapting.candidates import Group
from rerankd.tools.adapting.trainable import Trainable
from rerankd.tools.training.losses import LOSSES, curriculum_weight, margin_mse

MARGIN_MSE: Final = "margin-mse"
LOSS_NAMES: Final = (*LOSSES, MARGIN_MSE)
GROUPS_PER_STEP: Final = 4
TEXTS_PER_GROUP: Final = 6
# Of a query with more, some are drawn in each step and count for all.
MOST_RELEVANT: Final = 2
WARM_UP: Final = 0.1
# The share of the steps in which easy queries count more.
CURRICULUM: Final = 0.5
CHECKPOINT_EVERY_S: Final = 30.0
_MEASURED_STEPS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`loss` is one of `LOSS_NAMES`."""

    steps: int
    seed: int
    loss: str


@dataclass(frozen=True, slots=True)
class DrawnGroup:
    """One query as a step sees it: as many texts in every group, the relevant ones first; `weight` is the
    curriculum's.
    """

    query: str
    texts: Sequence[str]
    gains: Sequence[float]
    teacher: Sequence[float]
    weight: float


def learning_rate_factor(progress: float) -> float:
    """Rise linearly over the warm-up, then fall linearly to zero at 1."""
    return min(progress / WARM_UP, (1.0 - progress) / (1.0 - WARM_UP))


def draw(groups: Sequence[Group], step: int, schedule: Schedule) -> list[DrawnGroup]:
    """The groups of a step, from 0: every query once in each pass over them, in an order of that pass's own."""
    first = step * GROUPS_PER_STEP
    rng = random.Random(f"{schedule.seed} step {step}")
    progress = step / (CURRICULUM * schedule.steps)
    drawn = []
    for place in range(first, first + GROUPS_PER_STEP):
        turn, at = divmod(place, len(groups))
        order = random.Random(f"{schedule.seed} pass {turn}").sample(range(len(groups)), len(groups))
        drawn.append(_drawn(groups[order[at]], rng, progress))
    return drawn


def _drawn(group: Group, rng: random.Random, progress: float) -> DrawnGroup:
    relevant = rng.sample(list(group.relevant), min(MOST_RELEVANT, len(group.relevant)))
    counts_for = len(group.relevant) / len(relevant)
    wanted = TEXTS_PER_GROUP - len(relevant)
    negatives = rng.sample(list(group.negatives), min(wanted, len(group.negatives)))
    negatives += rng.choices(negatives, k=wanted - len(negatives))
    texts = [*(text for text, _ in relevant), *negatives]
    return DrawnGroup(
        query=group.query,
        texts=texts,
        gains=[*(counts_for * gain for _, gain in relevant), *[0.0] * wanted],
        teacher=[group.teacher.get(text, 0.0) for text in texts],
        weight=curriculum_weight(group.easiness, progress),
    )


class Training:
    """Takes the steps of a schedule, from the last checkpoint if there is one. Every group has negatives."""

    def __init__(
        self,
        model: Trainable,
        groups: Sequence[Group],
        schedule: Schedule,
        checkpoint: Path,
        *,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        self._model = model
        self._groups = groups
        self._schedule = schedule
        self._checkpoint = checkpoint
        self._checkpoint_every_s = checkpoint_every_s
        self._peaks = [float(group["lr"]) for group in model.parameters()]
        self._optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
        self.step = 0
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            model.restore(saved["model"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]

    def run(self, on_step: Callable[[int, float], None]) -> None:
        """Take all steps that are left; `on_step` gets the number of steps taken and the loss."""
        saved_at = time.monotonic()
        while self.step < self._schedule.steps:
            loss = self._take(draw(self._groups, self.step, self._schedule))
            self.step += 1
            if time.monotonic() - saved_at >= self._checkpoint_every_s or self.step == self._schedule.steps:
                self.save()
                saved_at = time.monotonic()
            on_step(self.step, loss)

    def save(self) -> None:
        """Write a checkpoint, at once or not at all."""
        unfinished = self._checkpoint.with_suffix(".unfinished")
        content: dict[str, Any] = {
            "model": self._model.state(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(content, unfinished)
        unfinished.replace(self._checkpoint)

    def _take(self, drawn: Sequence[DrawnGroup]) -> float:
        factor = learning_rate_factor((self.step + 0.5) / self._schedule.steps)
        for parameters, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            parameters["lr"] = peak * factor
        loss = step_loss(self._model, drawn, loss=self._schedule.loss)
        loss.backward()
        clip_grad_norm_([one for group in self._optimizer.param_groups for one in group["params"]], 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


def step_loss(model: Trainable, drawn: Sequence[DrawnGroup], *, loss: str) -> torch.Tensor:
    """The mean of the groups' losses, each times its weight."""
    flat = model.scores([(group.query, text) for group in drawn for text in group.texts])
    scores = flat.reshape(len(drawn), -1)
    gains = torch.tensor([group.gains for group in drawn], device=scores.device)
    weights = torch.tensor([group.weight for group in drawn], device=scores.device)
    if loss == MARGIN_MSE:
        teacher = torch.tensor([group.teacher for group in drawn], device=scores.device)
        values = margin_mse(scores, gains, teacher)
    else:
        values = LOSSES[loss](scores, gains)
    return (weights * values).mean()


def seconds_per_step(model: Trainable, groups: Sequence[Group], schedule: Schedule) -> float:
    """How long a step takes here, without taking one: no weight changes."""
    started = time.perf_counter()
    for step in range(_MEASURED_STEPS):
        step_loss(model, draw(groups, step, schedule), loss=schedule.loss).backward()
        for parameters in model.parameters():
            for one in parameters["params"]:
                one.grad = None
    return (time.perf_counter() - started) / _MEASURED_STEPS
