"""`python -m models.recipes.minilm_qa.reweigh`: other weights of the shipped model's signals, calibrated again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from models.recipes.minilm_qa.data import read_groups
from models.recipes.minilm_qa.interpolation import scale_of, weigh_signals
from models.recipes.minilm_qa.steps import Folders, finish
from models.recipes.minilm_qa.teacher import load_tokenizer
from rerankd.tools.training.shipped import SHIPPED, read_shipped


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/ and eval/.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where the graphs and the calibration go.")],
    shipped: Annotated[
        Path, typer.Option(help="The folder of a shipped model.", exists=True, file_okay=False)
    ] = SHIPPED,
    seed: Annotated[int, typer.Option(help="That of its training, which chose what was held out.")] = 13,
) -> None:
    """Give the signals the weights of `interpolation.py`, calibrate, export and quantize; nothing is trained.
    OUT/minilm-qa is the folder to ship.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = read_shipped(shipped)
    weigh_signals(model, scale=scale_of(model))
    _, held_out = read_groups(data, seed=seed)
    calibration = finish(model, load_tokenizer(), held_out, Folders(out))
    typer.echo(json.dumps(asdict(calibration), indent=1))


if __name__ == "__main__":
    typer.run(main)
