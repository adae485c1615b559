"""Trains the cross-encoder in two rounds within a time budget; a stopped run goes on from its last checkpoint."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from models.recipes.minilm_qa.data import POOL_SIZE, Group
from models.recipes.minilm_qa.losses import GroupLogits, total_loss
from models.recipes.minilm_qa.negatives import TrainingGroup, choose, mine
from models.recipes.minilm_qa.start import new_model
from models.recipes.minilm_qa.teacher import Teacher, load_tokenizer
from rerankd.tools.training.encoding import MAX_QUERY_TOKENS, PairEncoder, padded, token_ids
from rerankd.tools.training.lexical_tables import lexical_tables
from rerankd.tools.training.model import CrossEncoder, load_model, save_model
from rerankd.tools.training.precision import in_bfloat16

GROUPS_PER_STEP = 4
GROUPS_PER_WINDOW = 64
MAX_TOKENS_SHARES = {64: 0.20, 96: 0.30, 128: 0.30, 256: 0.15, 512: 0.05}
MAX_TOKENS = max(MAX_TOKENS_SHARES)
LEARNING_RATE = 6e-5
HEAD_LEARNING_RATE = 5e-4
WARM_UP = 0.05
FIRST_ROUND = 0.5
MINING_SHARE = 0.08
MINING_SPEEDUP = 3.0
TEACHER_WEIGHTS = (0.5, 0.25)
CHECKPOINT_EVERY_S = 150.0


@dataclass
class Progress:
    """How far a run is; written with each checkpoint."""

    elapsed_s: float = 0.0
    steps: int = 0
    pairs: int = 0
    groups: int = 0
    mined_until: int = 0


def learning_rate_factor(progress: float) -> float:
    """Rise linearly over the warm-up, then fall linearly to zero; `progress` is the share of the budget used."""
    return min(progress / WARM_UP, (1.0 - progress) / (1.0 - WARM_UP), 1.0) if progress < 1.0 else 0.0


def teacher_weight(progress: float) -> float:
    """The curriculum: imitate the teacher first, trust the labels later."""
    first, last = TEACHER_WEIGHTS
    return first + (last - first) * progress


class Trainer:
    """Holds everything that a checkpoint holds, and takes the steps."""

    def __init__(
        self,
        groups: Sequence[Group],
        teacher: Teacher,
        *,
        out: Path,
        minutes: float,
        seed: int,
        layers: int | None = None,
    ) -> None:
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer()
        self.progress = Progress()
        self._groups, self._teacher = list(groups), teacher
        self._folder = out / "checkpoint"
        self._budget_s, self._seed, self._layers = 60.0 * minutes, seed, layers
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder = PairEncoder(self.tokenizer)
        torch.manual_seed(seed)
        self.model = self._restored_model() or self.start()
        self.model.to(self._device).train()
        self._optimizer = _optimizer(self.model)
        if self.progress.steps:
            self._optimizer.load_state_dict(torch.load(self._folder / "optimizer.pt"))

    def run(self) -> CrossEncoder:
        """Train until the budget is spent, and return the model; a run that has spent it trains no more."""
        if self.progress.elapsed_s >= self._budget_s:
            self.model.eval()
            return self.model
        last_saved = time.monotonic()
        began = last_saved - self.progress.elapsed_s
        with tqdm(total=round(self._budget_s), initial=round(self.progress.elapsed_s), unit="s", mininterval=10) as bar:
            for batch in self._steps():
                loss = self._step(batch)
                self.progress.elapsed_s = time.monotonic() - began
                bar.set_postfix(steps=self.progress.steps, pairs=self.progress.pairs, loss=f"{loss:.3f}", refresh=False)
                bar.update(round(self.progress.elapsed_s) - bar.n)
                if time.monotonic() - last_saved > CHECKPOINT_EVERY_S:
                    self._save()
                    last_saved = time.monotonic()
                if self.progress.elapsed_s >= self._budget_s:
                    break
        self._save()
        self.model.eval()
        return self.model

    def start(self) -> CrossEncoder:
        """Return the model as it is before any step."""
        texts = sorted({text for group in self._groups for text in (group.positive, *group.negatives)})
        ids = token_ids(self.tokenizer, texts, max_tokens=MAX_TOKENS)
        return new_model(lexical_tables(self.tokenizer, ids, seed=self._seed), layers=self._layers)

    @property
    def _share(self) -> float:
        return min(1.0, self.progress.elapsed_s / self._budget_s)

    def _steps(self) -> Iterator[list[TrainingGroup]]:
        """Yield steps of groups of alike lengths, window by window, for as many passes as the budget lasts."""
        while True:
            if self._share >= FIRST_ROUND and not self.progress.mined_until:
                self._mine_ahead()
            rng = random.Random(f"{self._seed}-{self.progress.groups}")
            start = self.progress.groups % len(self._groups)
            window = self._groups[start : start + GROUPS_PER_WINDOW]
            mined = self.progress.groups < self.progress.mined_until
            chosen = [choose(group, self._teacher, rng, mined=mined) for group in window]
            chosen.sort(key=lambda group: max(map(len, group.texts)))
            steps = [chosen[at : at + GROUPS_PER_STEP] for at in range(0, len(chosen), GROUPS_PER_STEP)]
            rng.shuffle(steps)
            yield from steps
            self.progress.groups += len(window)

    def _mine_ahead(self) -> None:
        """Mine the groups that come next, as many as a share of the budget allows: a pass without gradients is fast."""
        pairs_per_s = MINING_SPEEDUP * self.progress.pairs / self.progress.elapsed_s
        affordable = 1 + int(MINING_SHARE * self._budget_s * pairs_per_s / POOL_SIZE)
        start = self.progress.groups % len(self._groups)
        stop = min(len(self._groups), start + affordable)
        self.model.eval()
        mined = mine(self._groups[start:stop], self.model, self.tokenizer)
        self.model.train()
        self._groups[start:stop] = mined
        self.progress.mined_until = self.progress.groups + len(mined)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "mined.json").write_text(json.dumps([start, [asdict(group) for group in mined]]))

    def _step(self, batch: Sequence[TrainingGroup]) -> float:
        share = self._share
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = parameters["peak"] * learning_rate_factor(share)
        loss = total_loss(self._logits(batch), teacher_weight=teacher_weight(share))
        loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.steps += 1
        self.progress.pairs += sum(len(group.texts) for group in batch)
        return float(loss.detach())

    def _logits(self, batch: Sequence[TrainingGroup]) -> GroupLogits:
        """Score a step's pairs in two halves of alike lengths."""
        rows = self._rows(batch)
        order = sorted(range(len(rows)), key=lambda position: len(rows[position][0]))
        halves = [order[: len(order) // 2], order[len(order) // 2 :]]
        scored = []
        for half in halves:
            with in_bfloat16(self._device):
                inputs = padded([rows[position] for position in half], self._device)
                scored.append(self.model(**inputs)[:, 0])
        flat = torch.cat(scored).float()[torch.tensor(order, device=self._device).argsort()]
        lengths = [len(group.texts) for group in batch]
        present = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
        student = torch.zeros(present.shape, device=self._device)
        teacher = torch.zeros(present.shape)
        present_here = present.to(self._device)
        student = student.masked_scatter(present_here, flat)
        teacher = teacher.masked_scatter(present, torch.cat([group.teacher for group in batch])).to(self._device)
        return GroupLogits(student, teacher, present_here)

    def _rows(self, batch: Sequence[TrainingGroup]) -> list[tuple[list[int], int]]:
        """Tokenize a step, each group cut to a length drawn for it."""
        rng = random.Random(f"{self._seed}-{self.progress.steps}")
        rows = []
        for group in batch:
            [limit] = rng.choices(list(MAX_TOKENS_SHARES), list(MAX_TOKENS_SHARES.values()))
            [query] = token_ids(self.tokenizer, [group.query], max_tokens=MAX_QUERY_TOKENS)
            documents = token_ids(self.tokenizer, group.texts, max_tokens=limit)
            rows += [self._encoder.pair(query, document, max_tokens=limit) for document in documents]
        return rows

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, self._folder)
        self.tokenizer.save_pretrained(self._folder)
        torch.save(self._optimizer.state_dict(), self._folder / "optimizer.pt")
        torch.save(asdict(self.progress), self._folder / "progress.pt")

    def _restored_model(self) -> CrossEncoder | None:
        if not (self._folder / "progress.pt").exists():
            return None
        self.progress = Progress(**torch.load(self._folder / "progress.pt"))
        model = load_model(self._folder)
        if self.progress.mined_until:
            start, mined = json.loads((self._folder / "mined.json").read_text())
            self._groups[start : start + len(mined)] = [_group_of(fields) for fields in mined]
        return model


def _group_of(fields: dict[str, Any]) -> Group:
    return Group(fields["source"], fields["query"], fields["positive"], tuple(fields["negatives"]))


def _optimizer(model: CrossEncoder) -> torch.optim.AdamW:
    body = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    head = [*model.word_weight.parameters(), *model.hidden.parameters(), *model.classifier.parameters()]
    groups = [{"params": body, "peak": LEARNING_RATE}, {"params": head, "peak": HEAD_LEARNING_RATE}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True)
