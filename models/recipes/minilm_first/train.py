"""Trains within a time budget; a stopped run goes on from its last checkpoint."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import BertGenerationDecoder

from models.recipes.minilm_first.lists import RankedList, ranked_list
from models.recipes.minilm_first.losses import first_loss
from models.recipes.minilm_first.prompts import WINDOW, Prompt, PromptWriter
from models.recipes.minilm_first.teacher import Teacher
from models.recipes.minilm_qa.data import Group
from models.recipes.precision import in_bfloat16

LISTS_PER_STEP = 4
LISTS_PER_SORTING = 32
ENCODER_LEARNING_RATE = 3e-5
LEARNING_RATE = 3e-4
WARM_UP = 0.05
CHECKPOINT_EVERY_S = 120.0
JUDGE_EVERY = 0.5


@dataclass
class Progress:
    """How far a run is; `losses` holds (lists seen, loss) of each step, `held_out` (lists seen, nDCG)."""

    elapsed_s: float = 0.0
    lists: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What a run is asked for."""

    minutes: float
    seed: int
    whole: bool


@dataclass(frozen=True)
class Batch:
    """Prompts with answers behind them. A prompt's tokens see the whole prompt, an answer's all that is before them."""

    ids: torch.Tensor
    visible: torch.Tensor
    steps: torch.Tensor
    targets: torch.Tensor
    ranks: torch.Tensor


class WindowRanker(nn.Module):
    """The language model with only the identifiers' rows of its head. Without `whole`, what is the bi-encoder's stays,
    and only the layers above it learn: that takes half of the time.
    """

    def __init__(self, model: BertGenerationDecoder, names: Sequence[int], *, whole: bool) -> None:
        super().__init__()
        self.bert = model.bert
        self.bert.requires_grad_(whole)
        self.bert.embeddings.word_embeddings.weight.requires_grad_(requires_grad=False)
        self.bert.encoder.layer[-2:].requires_grad_(requires_grad=True)
        self.names = tuple(names)
        self.head = nn.Linear(model.config.hidden_size, len(names))
        with torch.no_grad():
            self.head.weight.copy_(model.lm_head.decoder.weight[list(names)])
            self.head.bias.copy_(model.lm_head.decoder.bias[list(names)])

    def forward(self, ids: torch.Tensor, visible: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Logits of shape [lists, steps, identifiers]."""
        with in_bfloat16(ids.device):
            hidden = self.bert(input_ids=ids, attention_mask=visible).last_hidden_state
        read = hidden.float().gather(1, steps[:, :, None].expand(-1, -1, hidden.shape[-1]))
        logits: torch.Tensor = self.head(read)
        return logits

    @torch.no_grad()
    def write_into(self, model: BertGenerationDecoder) -> None:
        """Put the trained rows where the language model has them; the rest of it is shared."""
        model.lm_head.decoder.weight[list(self.names)] = self.head.weight
        model.lm_head.decoder.bias[list(self.names)] = self.head.bias


def batch_of(lists: Sequence[RankedList], prompts: Sequence[Prompt]) -> Batch:
    width = max(len(prompt.ids) + len(ranked.order) - 1 for prompt, ranked in zip(prompts, lists, strict=True))
    ids = torch.zeros(len(lists), width, dtype=torch.long)
    visible = torch.zeros(len(lists), 1, width, width, dtype=torch.bool)
    steps = torch.zeros(len(lists), WINDOW, dtype=torch.long)
    targets, ranks = torch.full((len(lists), WINDOW), -1), torch.zeros(len(lists), WINDOW, dtype=torch.long)
    for row, (ranked, prompt) in enumerate(zip(lists, prompts, strict=True)):
        length, count = len(prompt.ids), len(ranked.order)
        answer = [prompt.names[place] for place in ranked.order[:-1]]
        ids[row, : length + count - 1] = torch.tensor([*prompt.ids, *answer])
        visible[row, 0, :, :length] = True
        visible[row, 0, length:, length:] = torch.ones(width - length, width - length, dtype=torch.bool).tril()
        steps[row, :count] = torch.arange(length - 1, length - 1 + count)
        targets[row, :count] = torch.tensor(ranked.order)
        ranks[row, :count] = torch.tensor(ranked.ranks)
    return Batch(ids, visible, steps, targets, ranks)


@torch.inference_mode()
def held_out_ndcg(ranker: WindowRanker, writer: PromptWriter, lists: Sequence[RankedList]) -> float:
    """The mean nDCG of lists with one relevant text, which is the first of their order."""
    gains = []
    for at in range(0, len(lists), LISTS_PER_STEP):
        some = lists[at : at + LISTS_PER_STEP]
        batch = batch_of(some, [writer.write(ranked.query, ranked.texts) for ranked in some])
        for ranked, logits in zip(some, ranker(batch.ids, batch.visible, batch.steps)[:, 0], strict=True):
            better = logits[: len(ranked.texts)] > logits[ranked.order[0]]
            gains.append(1 / math.log2(2 + int(better.sum())))
    return sum(gains) / len(gains)


def learning_rate_factor(progress: float) -> float:
    """Rise linearly over the warm-up, then fall linearly to zero; `progress` is the share of the budget used."""
    return min(progress / WARM_UP, (1.0 - progress) / (1.0 - WARM_UP), 1.0) if progress < 1.0 else 0.0


class Trainer:
    """Holds everything that a checkpoint holds, and takes the steps."""

    def __init__(
        self,
        model: BertGenerationDecoder,
        writer: PromptWriter,
        groups: Sequence[Group],
        teacher: Teacher,
        held_out: Sequence[RankedList],
        *,
        checkpoint: Path,
        plan: Plan,
    ) -> None:
        torch.manual_seed(plan.seed)
        self.progress = Progress()
        self._writer, self._groups, self._teacher, self._held_out = writer, groups, teacher, held_out
        self._checkpoint, self._plan = checkpoint, plan
        self.ranker = WindowRanker(model, writer.write("x", ["y", "z"]).names, whole=plan.whole)
        self._optimizer = _optimizer(self.ranker)
        if checkpoint.exists():
            saved = torch.load(checkpoint)
            self.ranker.load_state_dict(saved["model"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self.progress = Progress(**saved["progress"])

    def run(self) -> None:
        """Train until the budget is spent; a run that has spent it trains no more."""
        budget_s = 60.0 * self._plan.minutes
        if not self.progress.held_out:
            self._judge()
        began = saved = time.monotonic()
        before, judged = self.progress.elapsed_s, self.progress.elapsed_s / budget_s
        with tqdm(total=round(budget_s), initial=round(before), unit="s", mininterval=10) as bar:
            for lists in self._steps():
                if self.progress.elapsed_s >= budget_s:
                    break
                loss = self._step(lists, share=self.progress.elapsed_s / budget_s)
                self.progress.elapsed_s = before + time.monotonic() - began
                bar.set_postfix(lists=self.progress.lists, loss=f"{loss:.3f}", refresh=False)
                bar.update(round(self.progress.elapsed_s) - bar.n)
                if self.progress.elapsed_s / budget_s - judged >= JUDGE_EVERY:
                    judged = self.progress.elapsed_s / budget_s
                    self._judge()
                if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                    self._save()
                    saved = time.monotonic()
        self._judge()
        self._save()

    def _judge(self) -> None:
        self.ranker.eval()
        self.progress.held_out.append((self.progress.lists, held_out_ndcg(self.ranker, self._writer, self._held_out)))
        self.ranker.train()

    def _steps(self) -> Iterator[list[RankedList]]:
        """Steps of lists of alike length, for as many passes over the groups as the budget lasts."""
        while True:
            seen = self.progress.lists
            rng = random.Random(f"{self._plan.seed}-{seen}")
            groups = [self._groups[(seen + number) % len(self._groups)] for number in range(LISTS_PER_SORTING)]
            lists = [ranked_list(group, self._teacher, rng) for group in groups]
            lists.sort(key=lambda ranked: len(ranked.texts))
            steps = [lists[at : at + LISTS_PER_STEP] for at in range(0, len(lists), LISTS_PER_STEP)]
            rng.shuffle(steps)
            yield from steps

    def _step(self, lists: Sequence[RankedList], *, share: float) -> float:
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = parameters["peak"] * learning_rate_factor(share)
        batch = batch_of(lists, [self._writer.write(ranked.query, ranked.texts) for ranked in lists])
        loss = first_loss(self.ranker(batch.ids, batch.visible, batch.steps), batch.targets, batch.ranks)
        loss.backward()
        clip_grad_norm_(self.ranker.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.lists += len(lists)
        self.progress.losses.append((self.progress.lists, round(float(loss.detach()), 4)))
        return float(loss.detach())

    def _save(self) -> None:
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.ranker.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, self._checkpoint)


def _optimizer(ranker: WindowRanker) -> torch.optim.AdamW:
    new = [*ranker.bert.encoder.layer[-2:].parameters(), *ranker.head.parameters()]
    ours = {id(parameter) for parameter in new}
    encoder = [p for p in ranker.bert.parameters() if p.requires_grad and id(p) not in ours]
    groups = [{"params": new, "peak": LEARNING_RATE}]
    groups += [{"params": encoder, "peak": ENCODER_LEARNING_RATE}] if encoder else []
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True)
