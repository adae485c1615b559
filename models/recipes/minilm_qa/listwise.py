"""Trains on blocks: every query's distribution over all of a block's documents is drawn towards the teacher's.

The teacher is the shipped model plus a larger bi-encoder. The learning rate stays the same after the warm-up, and
what is kept is the mean of the last weights (EMA), which is good to use at any step: a run may go on for as long as it
helps, and a longer one begins as a shorter one does.
"""

import copy
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cosine_similarity,
    cross_entropy,
    kl_div,
    log_softmax,
    normalize,
    softmax,
)
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from models.recipes.minilm_qa.block_pass import EncodedBlock, Texts, encode, logits
from models.recipes.minilm_qa.blocks import Block
from models.recipes.minilm_qa.larger import TextLikeness
from models.recipes.minilm_qa.negatives import LOOSELY_LABELLED
from rerankd.tools.training.encoding import MAX_QUERY_TOKENS, PairEncoder, token_ids
from rerankd.tools.training.model import COSINE_SCALE, CrossEncoder, load_model, save_model
from rerankd.tools.training.precision import in_bfloat16

BLOCKS_PER_STEP = 2
BLOCKS_PER_WINDOW = 24
MAX_TOKENS_SHARES = {64: 0.15, 96: 0.25, 128: 0.3, 192: 0.15, 320: 0.1, 512: 0.05}
WARM_UP_STEPS = 30
MEAN_OVER_STEPS = 100
CHECKPOINT_EVERY_S = 150.0
# brings the logits, whose signals are large, to where a softmax over a list is neither flat nor one document's
TEMPERATURE = 5.0
# of the larger bi-encoder's cosine, in units of the model's own
LARGER_WEIGHT = 4.0
# a document is taken for irrelevant if the teacher puts it so far below the relevant one, in its logits, ...
CREDIBLE_MARGIN = 5.0
# ... or if the labels say so, and the teacher puts it at most so far above, where labels leave relevant texts out
DOUBT = 2.0
LABEL_WEIGHT = 0.3
MARGIN_WEIGHT = 0.05
POINTWISE_WEIGHT = 0.1


@dataclass(frozen=True)
class Plan:
    """How fast a student learns, and what it takes from the teacher beside the order of lists: the larger bi-encoder's
    likeness of texts, and the last states of the teacher's model.
    """

    learning_rate: float
    head_learning_rate: float
    likeness_weight: float = 0.0
    states_weight: float = 0.0


# for a student that begins with all of the teacher's weights
CONTINUE = Plan(learning_rate=2e-5, head_learning_rate=1e-4, likeness_weight=0.05)
# for one that has lost layers: every token's states teach it far more than a pair's score
IMITATE = Plan(learning_rate=2e-4, head_learning_rate=2e-4, states_weight=5.0)


@dataclass
class Progress:
    """How far a run is; written with each checkpoint."""

    steps: int = 0
    pairs: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class Lists:
    """A block's logits and the teacher's, [queries, documents]; `relevant` has one column a query, `irrelevant` says
    which documents the labels or the teacher take for irrelevant.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    relevant: torch.Tensor
    irrelevant: torch.Tensor


def listwise_loss(lists: Lists) -> torch.Tensor:
    """The teacher's softmax over each list, its margins (Margin-MSE), the labels, and the absolute level."""
    student, teacher = lists.student / TEMPERATURE, lists.teacher / TEMPERATURE
    distribution = kl_div(log_softmax(student, dim=1), softmax(teacher, dim=1), reduction="batchmean")
    relevant = lists.relevant[:, None]
    margins = (student.gather(1, relevant) - student) - (teacher.gather(1, relevant) - teacher)
    counted = lists.irrelevant.scatter(1, relevant, value=True)
    labels = cross_entropy(student.masked_fill(~counted, -1e4), lists.relevant)
    wanted = torch.zeros_like(student).scatter(1, relevant, 1.0)
    share = torch.where(wanted > 0, 1.0, 1.0 / counted.sum(dim=1, keepdim=True).sub(1).clamp(min=1))
    level = binary_cross_entropy_with_logits(student[counted], wanted[counted], share[counted], reduction="sum")
    return (
        distribution
        + MARGIN_WEIGHT * margins.square().mean()
        + LABEL_WEIGHT * labels
        + POINTWISE_WEIGHT * level / len(student)
    )


def likeness_loss(vectors: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far the cosines of all of a block's texts are from the larger bi-encoder's (relational distillation, Park et
    al. 2019, arXiv 1904.05068). It costs nothing on top of the pass.
    """
    return (COSINE_SCALE * (vectors @ vectors.T - wanted)).square().mean()


def states_loss(ours: EncodedBlock, theirs: EncodedBlock) -> torch.Tensor:
    """How far the directions of all tokens' last states are from the teacher's; the head reads nothing else."""
    pairs = zip(ours.states, theirs.states, strict=True)
    alike = [cosine_similarity(one.float(), other.float(), dim=1).mean() for one, other in pairs]
    return 1.0 - torch.stack(alike).mean()


class Judgement(NamedTuple):
    """What the teacher thinks of a block: logits of [queries, documents], and its model's states."""

    logits: torch.Tensor
    encoded: EncodedBlock


class ListTeacher:
    """A model's logits plus the larger bi-encoder's cosine. The model's own cosine has the weight 1 (`unfold`)."""

    def __init__(self, model: CrossEncoder, larger: TextLikeness, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self._larger, self._tokenizer = larger, tokenizer
        self._encoder = PairEncoder(tokenizer)

    def add(self, blocks: Sequence[Block]) -> None:
        """Prepare to judge these blocks."""
        self._larger.add(text for block in blocks for text in (*block.queries, *block.documents))

    def rows(self, block: Block, *, max_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
        """Tokenize queries and documents, `[CLS] text [SEP]` each; documents are cut to `max_tokens`."""
        of_queries = token_ids(self._tokenizer, block.queries, max_tokens=MAX_QUERY_TOKENS)
        of_documents = token_ids(self._tokenizer, block.documents, max_tokens=max_tokens - 2)
        queries, documents = ([self._encoder.single(one)[0] for one in ids] for ids in (of_queries, of_documents))
        return queries, documents

    def likeness(self, block: Block) -> torch.Tensor:
        """Return the larger bi-encoder's cosines of all texts with all, queries first, [texts, texts]."""
        texts = [*block.queries, *block.documents]
        return self._larger.cosines(texts, texts).to(self.model.classifier.weight.device)

    @torch.no_grad()
    def judge(self, block: Block, *, max_tokens: int) -> Judgement:
        """Score each query with each document."""
        with in_bfloat16(self.model.classifier.weight.device):
            encoded = encode(self.model, *self.rows(block, max_tokens=max_tokens))
            own = logits(self.model, encoded)
        between = self.likeness(block)[: len(block.queries), len(block.queries) :]
        return Judgement(own + LARGER_WEIGHT * COSINE_SCALE * between, encoded)


class ListwiseTrainer:
    """Holds everything that a checkpoint holds, and takes the steps. `start` is the student before the first."""

    def __init__(
        self, blocks: Sequence[Block], teacher: ListTeacher, start: CrossEncoder, plan: Plan, *, out: Path, seed: int
    ) -> None:
        self.progress = Progress()
        self._blocks, self._teacher, self._plan = list(blocks), teacher, plan
        self._folder, self._partial, self._seed = out / "checkpoint", out / "checkpoint.partial", seed
        self._recover()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        teacher.model.to(self._device)
        self._model, self.mean = (self._restored(name, start) for name in ("last", "mean"))
        self._model.train()
        self._optimizer = _optimizer(self._model, plan)
        if (self._folder / "progress.pt").exists():
            self._optimizer.load_state_dict(torch.load(self._folder / "optimizer.pt"))
            self.progress = Progress(**torch.load(self._folder / "progress.pt"))

    def run(self, *, minutes: float, steps: int | None = None) -> CrossEncoder:
        """Train until it has taken so long in all, or that number of steps, and return the mean of the last weights."""
        last_saved = time.monotonic()
        began = last_saved - self.progress.elapsed_s
        with tqdm(total=round(60 * minutes), initial=round(self.progress.elapsed_s), unit="s", mininterval=10) as bar:
            for blocks in self._steps():
                if self.progress.elapsed_s >= 60 * minutes or self.progress.steps == steps:
                    break
                loss = self._step(blocks)
                self.progress.elapsed_s = time.monotonic() - began
                bar.set_postfix(steps=self.progress.steps, pairs=self.progress.pairs, loss=f"{loss:.3f}", refresh=False)
                bar.update(round(self.progress.elapsed_s) - bar.n)
                if time.monotonic() - last_saved > CHECKPOINT_EVERY_S:
                    self._save()
                    last_saved = time.monotonic()
        self._save()
        return self.mean

    def _steps(self) -> Iterator[list[Block]]:
        """Yield the blocks of a step, window by window, from where the run stopped, for as many passes as it takes."""
        number = self.progress.steps
        per_window = BLOCKS_PER_WINDOW // BLOCKS_PER_STEP
        windows = -(-len(self._blocks) // BLOCKS_PER_WINDOW)
        while True:
            at = number // per_window % windows * BLOCKS_PER_WINDOW
            window = self._blocks[at : at + BLOCKS_PER_WINDOW]
            self._teacher.add(window)
            random.Random(f"{self._seed}-{number // per_window}").shuffle(window)
            for first in range(number % per_window, per_window):
                chosen = window[first * BLOCKS_PER_STEP : (first + 1) * BLOCKS_PER_STEP]
                number += 1
                if chosen:
                    yield chosen

    def _step(self, blocks: Sequence[Block]) -> float:
        rng = random.Random(f"{self._seed}-{self.progress.steps}")
        factor = min(1.0, (self.progress.steps + 1) / WARM_UP_STEPS)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = parameters["peak"] * factor
        total = 0.0
        for block in blocks:
            loss = self._loss(block, rng) / len(blocks)
            loss.backward()
            total += float(loss.detach())
            self.progress.pairs += len(block.queries) * len(block.documents)
        clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.steps += 1
        self._update_mean()
        return total

    def _loss(self, block: Block, rng: random.Random) -> torch.Tensor:
        [limit] = rng.choices(list(MAX_TOKENS_SHARES), list(MAX_TOKENS_SHARES.values()))
        with in_bfloat16(self._device):
            encoded = encode(self._model, *self._teacher.rows(block, max_tokens=limit))
            student = logits(self._model, encoded)
        judgement = self._teacher.judge(block, max_tokens=limit)
        loss = listwise_loss(_lists(block, student, judgement.logits))
        if self._plan.likeness_weight:
            likeness = likeness_loss(_vectors(encoded), self._teacher.likeness(block))
            loss = loss + self._plan.likeness_weight * likeness
        if self._plan.states_weight:
            loss = loss + self._plan.states_weight * states_loss(encoded, judgement.encoded)
        return loss

    @torch.no_grad()
    def _update_mean(self) -> None:
        kept = 1.0 - 1.0 / min(self.progress.steps + 1, MEAN_OVER_STEPS)
        for mean, last in zip(self.mean.parameters(), self._model.parameters(), strict=True):
            if last.requires_grad:
                mean.lerp_(last, 1.0 - kept)

    def _save(self) -> None:
        """Write a checkpoint beside the last one, its progress at the end, and then put it into its place."""
        shutil.rmtree(self._partial, ignore_errors=True)
        save_model(self._model, self._partial / "last")
        save_model(self.mean, self._partial / "mean")
        torch.save(self._optimizer.state_dict(), self._partial / "optimizer.pt")
        torch.save(asdict(self.progress), self._partial / "progress.pt")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)

    def _recover(self) -> None:
        """Where a run was stopped between the last two lines of `_save`, do the last."""
        if not (self._folder / "progress.pt").exists() and (self._partial / "progress.pt").exists():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._partial.rename(self._folder)

    def _restored(self, name: str, start: CrossEncoder) -> CrossEncoder:
        kept = (self._folder / "progress.pt").exists()
        model = load_model(self._folder / name) if kept else copy.deepcopy(start)
        model.to(self._device)
        return model


def _lists(block: Block, student: torch.Tensor, teacher: torch.Tensor) -> Lists:
    relevant = torch.tensor(block.relevant, device=student.device)
    above = teacher - teacher.gather(1, relevant[:, None])
    known = torch.zeros_like(above, dtype=torch.bool)
    for row, positions in enumerate(block.known):
        known[row, list(positions)] = True
    if block.source in LOOSELY_LABELLED:
        known &= above < DOUBT
    return Lists(student, teacher, relevant, known | (above < -CREDIBLE_MARGIN))


def _vectors(block: EncodedBlock) -> torch.Tensor:
    """Return the unit mean vector of each text, queries first, [texts, size]."""
    return torch.cat([_means(block.queries, block.query_states), _means(block.documents, block.document_states)])


def _means(texts: Texts, states: torch.Tensor) -> torch.Tensor:
    return normalize((states.float() * texts.real[:, :, None]).sum(dim=1), dim=1)


def _optimizer(model: CrossEncoder, plan: Plan) -> torch.optim.AdamW:
    """The signals' weights are trained with the rest: the teacher's lists hold them about where they are."""
    body = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    head = [*model.word_weight.parameters(), *model.hidden.parameters(), *model.classifier.parameters()]
    groups = [{"params": body, "peak": plan.learning_rate}, {"params": head, "peak": plan.head_learning_rate}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True)
