"""`python -m models.recipes.minilm_qa.distill`: a model of fewer layers that imitates the shipped one."""

import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn.functional import cosine_similarity, mse_loss
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from models.recipes.minilm_qa.data import Group, read_groups
from models.recipes.minilm_qa.steps import Folders, Measured, finish, measure
from models.recipes.minilm_qa.teacher import load_tokenizer
from models.recipes.minilm_qa.train import learning_rate_factor
from rerankd.tools.training.encoding import MAX_QUERY_TOKENS, PairEncoder, padded, token_ids
from rerankd.tools.training.model import CrossEncoder
from rerankd.tools.training.precision import in_bfloat16
from rerankd.tools.training.shipped import SHIPPED, read_shipped

NEGATIVES = 3
GROUPS_PER_STEP = 8
GROUPS_PER_WINDOW = 64
MAX_TOKENS = 160
LEARNING_RATE = 3e-4
STATES_WEIGHT = 20.0


def cut(teacher: CrossEncoder, *, layers: int) -> CrossEncoder:
    """Return a model of this many of the teacher's layers, the first and the last among them."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = layers
    student = CrossEncoder(config)
    every = teacher.bert.encoder.layer
    kept = [round(number * (len(every) - 1) / (layers - 1)) for number in range(layers)]
    whole = {name: value for name, value in teacher.state_dict().items() if not name.startswith("bert.encoder.layer.")}
    student.load_state_dict(whole, strict=False)
    for ours, theirs in zip(student.bert.encoder.layer, kept, strict=True):
        ours.load_state_dict(every[theirs].state_dict())
    return student


def imitation_loss(student: CrossEncoder, teacher: CrossEncoder, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return how far the student is from the teacher on groups of 1 + `NEGATIVES` pairs.

    The differences of scores within a group (Margin-MSE, Hofstätter et al. 2020, arXiv 2010.02666), and the direction
    of every token's last vector, which teaches far more a pair than its one score.
    """
    with torch.no_grad():
        wanted, wanted_states, real = teacher.logits_and_states(**inputs)
    got, states, _ = student.logits_and_states(**inputs)
    got, wanted = (logits.float().reshape(-1, 1 + NEGATIVES) for logits in (got, wanted))
    margins = mse_loss(got[:, :1] - got[:, 1:], wanted[:, :1] - wanted[:, 1:])
    level = mse_loss(got.mean(), wanted.mean())
    alike = cosine_similarity(states.float(), wanted_states.float(), dim=2)[real].mean()
    return margins + 0.1 * level + STATES_WEIGHT * (1.0 - alike)


def train(
    student: CrossEncoder,
    teacher: CrossEncoder,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    *,
    minutes: float,
    seed: int,
) -> int:
    """Train the student in place for so long; return the number of pairs that it has seen."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student.to(device).train()
    teacher.to(device).eval()
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True)
    pairs, began = 0, time.monotonic()
    with tqdm(total=round(60 * minutes), unit="s", mininterval=10) as bar:
        for rows in _steps(groups, tokenizer, seed=seed):
            elapsed_s = time.monotonic() - began
            bar.update(round(elapsed_s) - bar.n)
            if elapsed_s >= 60 * minutes:
                break
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * learning_rate_factor(elapsed_s / (60 * minutes))
            with in_bfloat16(device):
                loss = imitation_loss(student, teacher, padded(rows, device))
            loss.backward()
            clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            pairs += len(rows)
            bar.set_postfix(pairs=pairs, loss=f"{float(loss.detach()):.3f}", refresh=False)
    student.cpu().eval()
    return pairs


def _steps(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Iterator[list[tuple[list[int], int]]]:
    """Yield the rows of `GROUPS_PER_STEP` groups of alike lengths, for ever."""
    rng, encoder = random.Random(seed), PairEncoder(tokenizer)
    usable = [group for group in groups if len(group.negatives) >= NEGATIVES]
    while True:
        window = []
        for group in rng.sample(usable, GROUPS_PER_WINDOW):
            [query] = token_ids(tokenizer, [group.query], max_tokens=MAX_QUERY_TOKENS)
            texts = (group.positive, *rng.sample(group.negatives, NEGATIVES))
            documents = token_ids(tokenizer, texts, max_tokens=MAX_TOKENS)
            window.append([encoder.pair(query, document, max_tokens=MAX_TOKENS) for document in documents])
        window.sort(key=lambda rows: max(len(row) for row, _ in rows))
        steps = [window[at : at + GROUPS_PER_STEP] for at in range(0, len(window), GROUPS_PER_STEP)]
        rng.shuffle(steps)
        for step in steps:
            yield [row for rows in step for row in rows]


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/ and eval/.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where the student's graphs and figures go.")],
    teacher: Annotated[
        Path, typer.Option(help="The folder of a shipped model.", exists=True, file_okay=False)
    ] = SHIPPED,
    layers: Annotated[int, typer.Option(help="How many layers it keeps.", min=2)] = 2,
    minutes: Annotated[float, typer.Option(help="Wall-clock time for training.")] = 20.0,
    seed: int = 13,
    most_pairs: Annotated[int, typer.Option(help="Evaluate on about this many pairs of a set.")] = 5_000,
) -> None:
    """Distil, calibrate, export, quantize and evaluate; OUT/minilm-qa is the student's folder."""
    out.mkdir(parents=True, exist_ok=True)
    folders, tokenizer = Folders(out), load_tokenizer()
    groups, held_out = read_groups(data, seed=seed)
    master = read_shipped(teacher)
    student = cut(master, layers=layers)
    typer.echo(f"trained on {train(student, master, tokenizer, groups, minutes=minutes, seed=seed):,} pairs")
    finish(student, tokenizer, held_out, folders)
    measured = Measured(most_pairs=most_pairs, float32_pairs=most_pairs // 5)
    figures = measure(data, tokenizer, folders, measured)
    typer.echo(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
