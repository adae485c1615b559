"""`python -m models.recipes.minilm_qa`: from the data folder to the folder that ships, in one resumable run."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from models.recipes.minilm_qa.card import write_card
from models.recipes.minilm_qa.data import read_groups
from models.recipes.minilm_qa.evaluate import EVALUATION_SETS
from models.recipes.minilm_qa.interpolation import move_towards, weigh_signals
from models.recipes.minilm_qa.steps import Folders, Measured, finish, measure
from models.recipes.minilm_qa.teacher import Teacher
from models.recipes.minilm_qa.train import Trainer

DEPTH = 100
SMOKE_SHARE = 0.001
SMOKE_MINUTES = 0.1
SMOKE_PAIRS = 20
SMOKE_DEPTH = 20
SMOKE_LAYERS = 2
SMOKE_SETS = frozenset({"dl19", "scifact", "squad_dev"})


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/ and eval/.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where checkpoints and results go; a stopped run goes on from there.")],
    minutes: Annotated[float, typer.Option(help="Wall-clock time for training.")] = 50.0,
    seed: Annotated[int, typer.Option(help="Seeds the choice of queries and the order.")] = 13,
    most_pairs: Annotated[int, typer.Option(help="Evaluate on about this many pairs of a set.")] = 100_000,
    float32_pairs: Annotated[int, typer.Option(help="Compare int8 with float32 on this many of them.")] = 5_000,
    smoke: Annotated[bool, typer.Option(help="The whole chain on next to nothing, with two layers.")] = False,
) -> None:
    """Train, calibrate, export, quantize, evaluate and describe the model; OUT/minilm-qa is the folder to ship."""
    depth, layers, sets = DEPTH, None, EVALUATION_SETS
    if smoke:
        layers, sets = SMOKE_LAYERS, tuple(chosen for chosen in sets if chosen.name in SMOKE_SETS)
        minutes, most_pairs, float32_pairs, depth = SMOKE_MINUTES, SMOKE_PAIRS, SMOKE_PAIRS, SMOKE_DEPTH
    out.mkdir(parents=True, exist_ok=True)
    folders = Folders(out)
    train, held_out = read_groups(data, seed=seed, share=SMOKE_SHARE if smoke else 1.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Teacher([*train, *held_out], cache=out / "teacher.pt", device=device)
    trainer = Trainer(train, teacher, out=out, minutes=minutes, seed=seed, layers=layers)
    model = trainer.run().cpu()
    move_towards(model, trainer.start())
    weigh_signals(model)
    finish(model, trainer.tokenizer, held_out, folders)
    measured = Measured(sets, most_pairs=most_pairs, float32_pairs=float32_pairs, depth=depth)
    measure(data, trainer.tokenizer, folders, measured)
    write_card(folders, trainer.progress, seed=seed, minutes=minutes)
    typer.echo(json.dumps(json.loads(folders.quality.read_text()), indent=1))


if __name__ == "__main__":
    typer.run(main)
