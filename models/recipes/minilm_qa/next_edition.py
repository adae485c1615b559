"""`python -m models.recipes.minilm_qa.next_edition`: the shipped model, trained further on blocks by a larger teacher;
or, with `--layers`, a faster model that keeps some of its layers.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import PreTrainedTokenizerBase

from models.recipes.minilm_qa.block_pass import encode, logits
from models.recipes.minilm_qa.blocks import blocks_of
from models.recipes.minilm_qa.data import Group, read_groups
from models.recipes.minilm_qa.evaluate import EVALUATION_SETS
from models.recipes.minilm_qa.interpolation import move_towards, unfold
from models.recipes.minilm_qa.larger import LargerVectors
from models.recipes.minilm_qa.listwise import CONTINUE, IMITATE, ListTeacher, ListwiseTrainer
from models.recipes.minilm_qa.start import cut
from models.recipes.minilm_qa.steps import Folders, Measured, finish, measure
from models.recipes.minilm_qa.teacher import load_tokenizer
from rerankd.tools.training.encoding import PairEncoder, token_ids
from rerankd.tools.training.model import CrossEncoder
from rerankd.tools.training.precision import in_bfloat16
from rerankd.tools.training.shipped import SHIPPED, read_shipped

# their groups are never trained on, so that they tell how a choice does on texts of another kind
UNSEEN = frozenset({"skeptics", "pubmedqa"})
TRAINED_SHARES = (0.0, 0.5, 1.0)
JUDGED_GROUPS = 40
JUDGED_TOKENS = 256
SMOKE_SHARE = 0.001
SMOKE_SETS = tuple(chosen for chosen in EVALUATION_SETS if chosen.name == "trecqa")


def reciprocal_ranks(
    model: CrossEncoder, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]
) -> dict[str, float]:
    """Return by source the mean reciprocal rank of the relevant text in its group, over the first groups of each, and
    the mean over the sources as `mean`.
    """
    ranks: dict[str, list[float]] = {}
    for group in groups:
        of_source = ranks.setdefault(group.source, [])
        if len(of_source) < JUDGED_GROUPS:
            of_source.append(_reciprocal_rank(model, tokenizer, group))
    figures = {source: sum(found) / len(found) for source, found in ranks.items()}
    return figures | {"mean": sum(figures.values()) / len(figures)}


@torch.inference_mode()
def _reciprocal_rank(model: CrossEncoder, tokenizer: PreTrainedTokenizerBase, group: Group) -> float:
    encoder, device = PairEncoder(tokenizer), model.classifier.weight.device
    rows = [
        [encoder.single(ids)[0] for ids in token_ids(tokenizer, texts, max_tokens=JUDGED_TOKENS)]
        for texts in ((group.query,), (group.positive, *group.negatives))
    ]
    with in_bfloat16(device):
        scores = logits(model, encode(model, *rows))[0]
    return 1.0 / (1 + int((scores[1:] >= scores[0]).sum()))


def best_share(
    trained: CrossEncoder, start: CrossEncoder, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group], file: Path
) -> CrossEncoder:
    """Return the point between start and end of training that ranks held-out groups best; write what each of them does.

    No evaluation set is looked at for it.
    """
    candidates = []
    for share in TRAINED_SHARES:
        model = copy.deepcopy(trained)
        move_towards(model, start, trained_share=share)
        candidates.append((model, reciprocal_ranks(model, tokenizer, groups)))
    figures = [{"share": share, **found} for share, (_, found) in zip(TRAINED_SHARES, candidates, strict=True)]
    file.write_text(json.dumps(figures, indent=1))
    return max(candidates, key=lambda candidate: candidate[1]["mean"])[0]


def main(  # noqa: PLR0913 - what the command is told
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/ and eval/.", exists=True, file_okay=False)],
    larger: Annotated[Path, typer.Option(help="Folder of all-mpnet-base-v2.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where vectors, checkpoints and results go; a stopped run goes on.")],
    present: Annotated[
        Path, typer.Option(help="The edition that training begins with.", exists=True, file_okay=False)
    ] = SHIPPED,
    layers: Annotated[int | None, typer.Option(help="Keep only this number of its layers, for speed.", min=2)] = None,
    minutes: Annotated[float, typer.Option(help="Wall-clock time for training in all; raise it to go on.")] = 240.0,
    seed: Annotated[int, typer.Option(help="Seeds the choice of queries and the order.")] = 13,
    most_pairs: Annotated[int, typer.Option(help="Evaluate on about this many pairs of a set.")] = 100_000,
    smoke: Annotated[bool, typer.Option(help="The whole chain on next to nothing.")] = False,
) -> None:
    """Train on blocks, choose how much of the training to keep, calibrate, export, quantize and evaluate."""
    measured = Measured(most_pairs=most_pairs, float32_pairs=most_pairs // 20)
    if smoke:
        minutes, measured = 0.0, Measured(SMOKE_SETS, most_pairs=20, float32_pairs=20, depth=10)
    out.mkdir(parents=True, exist_ok=True)
    folders, tokenizer = Folders(out), load_tokenizer()
    train, held_out = read_groups(data, seed=seed, share=SMOKE_SHARE if smoke else 1.0)
    blocks = blocks_of([group for group in train if group.source not in UNSEEN], seed=seed)
    teacher = ListTeacher(read_present(present), LargerVectors(larger, cache=out / "vectors"), tokenizer)
    start, plan = read_present(present), CONTINUE
    if layers is not None and layers < len(start.bert.encoder.layer):
        start, plan = cut(start, layers=layers), IMITATE
    trainer = ListwiseTrainer(blocks, teacher, start, plan, out=out, seed=seed)
    trained = trainer.run(minutes=minutes, steps=1 if smoke else None).eval().cpu()
    if plan is CONTINUE:
        trained = best_share(trained, start, tokenizer, held_out, out / "shares.json")
    finish(trained, tokenizer, held_out, folders)
    typer.echo(json.dumps(measure(data, tokenizer, folders, measured), indent=1))


def read_present(folder: Path) -> CrossEncoder:
    """Return a shipped model as it was before its calibration."""
    model = read_shipped(folder)
    unfold(model)
    return model


if __name__ == "__main__":
    typer.run(main)
