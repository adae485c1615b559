"""`python -m models.recipes.minilm_qa.next_edition`: the same model, trained on blocks with a larger teacher."""

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
from models.recipes.minilm_qa.interpolation import move_towards, weigh_signals
from models.recipes.minilm_qa.larger import LargerVectors
from models.recipes.minilm_qa.listwise import ListTeacher, ListwiseTrainer
from models.recipes.minilm_qa.start import new_model
from models.recipes.minilm_qa.steps import Folders, Measured, finish, measure
from models.recipes.minilm_qa.teacher import load_tokenizer
from rerankd.tools.training.encoding import PairEncoder, token_ids
from rerankd.tools.training.lexical_tables import lexical_tables
from rerankd.tools.training.model import CrossEncoder, load_model, save_model
from rerankd.tools.training.precision import in_bfloat16

# their groups are never trained on, so that they tell how a choice does on texts of another kind
UNSEEN = frozenset({"skeptics", "pubmedqa"})
TRAINED_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
JUDGED_GROUPS = 60
JUDGED_TOKENS = 256
MAX_TOKENS = 512


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


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/ and eval/.", exists=True, file_okay=False)],
    larger: Annotated[Path, typer.Option(help="Folder of all-mpnet-base-v2.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where vectors, checkpoints and results go; a stopped run goes on.")],
    minutes: Annotated[float, typer.Option(help="Wall-clock time for training in all; raise it to go on.")] = 240.0,
    seed: Annotated[int, typer.Option(help="Seeds the choice of queries and the order.")] = 13,
    most_pairs: Annotated[int, typer.Option(help="Evaluate on about this many pairs of a set.")] = 100_000,
) -> None:
    """Train on blocks, choose how much of the training to keep, calibrate, export, quantize and evaluate."""
    out.mkdir(parents=True, exist_ok=True)
    folders, tokenizer = Folders(out), load_tokenizer()
    train, held_out = read_groups(data, seed=seed)
    start = read_start(train, tokenizer, out / "start", seed=seed)
    blocks = blocks_of([group for group in train if group.source not in UNSEEN], seed=seed)
    teacher = ListTeacher(start, LargerVectors(larger, cache=out / "vectors"), tokenizer)
    trainer = ListwiseTrainer(blocks, teacher, out=out, seed=seed)
    trained = trainer.run(minutes=minutes).eval()
    model = best_share(trained, start, tokenizer, held_out, out / "shares.json").cpu()
    finish(model, tokenizer, held_out, folders)
    figures = measure(data, tokenizer, folders, Measured(most_pairs=most_pairs, float32_pairs=most_pairs // 20))
    typer.echo(json.dumps(figures, indent=1))


def read_start(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, folder: Path, *, seed: int) -> CrossEncoder:
    """Return the model as it starts, its signals weighed by hand; kept, since counting all words takes a while."""
    if not (folder / "config.json").exists():
        texts = sorted({text for group in groups for text in (group.positive, *group.negatives)})
        ids = token_ids(tokenizer, texts, max_tokens=MAX_TOKENS)
        model = new_model(lexical_tables(tokenizer, ids, seed=seed))
        weigh_signals(model)
        save_model(model, folder)
    return load_model(folder)


if __name__ == "__main__":
    typer.run(main)
