"""`python -m models.recipes.first`: an adapter that makes a small chat model rank windows in one pass."""

import random
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM

from models.recipes.first.serve import NAME, load_scorer, write_served
from models.recipes.first.train import AdapterTrainer, with_adapter
from models.recipes.first.windows import Window, WindowEncoder, windows_of
from models.recipes.minilm_qa.blocks import blocks_of
from models.recipes.minilm_qa.data import read_groups
from models.recipes.minilm_qa.larger import LargerVectors
from models.recipes.minilm_qa.listwise import ListTeacher
from models.recipes.minilm_qa.next_edition import UNSEEN, read_present
from models.recipes.minilm_qa.teacher import load_tokenizer
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.tools.training.shipped import SHIPPED

TEACHER_TOKENS = 192


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/.", exists=True, file_okay=False)],
    base: Annotated[Path, typer.Option(help="Folder of SmolLM2-135M-Instruct.", exists=True, file_okay=False)],
    larger: Annotated[Path, typer.Option(help="Folder of all-mpnet-base-v2.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where checkpoints, adapter and registry go; a stopped run goes on.")],
    minutes: Annotated[float, typer.Option(help="Wall-clock time for training in all; raise it to go on.")] = 240.0,
    window: Annotated[int, typer.Option(help="Passages that one pass ranks.", min=2, max=16)] = 10,
    seed: Annotated[int, typer.Option(help="Seeds the choice of queries and passages.")] = 13,
) -> None:
    """Train on the teacher's orders; OUT/registry.toml then serves the adapter over its base."""
    torch.manual_seed(seed)
    train, _ = read_groups(data, seed=seed)
    teacher = ListTeacher(read_present(SHIPPED), LargerVectors(larger, cache=out / "vectors"), load_tokenizer())
    blocks = blocks_of([group for group in train if group.source not in UNSEEN], seed=seed)
    write_served(out, base=base, window=window)
    encoder = WindowEncoder(load_scorer(out, base=base), TokenizerFolder.read(base))
    rng = random.Random(seed)

    def windows(number: int) -> list[Window]:
        block = blocks[number % len(blocks)]
        teacher.add([block])
        return windows_of(block, teacher.judge(block, max_tokens=TEACHER_TOKENS).logits, size=window, rng=rng)

    model = with_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    trainer = AdapterTrainer(model, encoder, windows, out=out)
    trainer.run(minutes=minutes)
    trainer.save_adapter(out / NAME)
    typer.echo(
        f"{trainer.progress.windows:,} windows; serve it: RERANKD_REGISTRY={out / 'registry.toml'} rerankd serve"
    )


if __name__ == "__main__":
    typer.run(main)
