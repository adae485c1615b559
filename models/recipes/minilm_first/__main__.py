"""`python -m models.recipes.minilm_first`: from the data folder to a served model, in one resumable run."""

import random
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoModel, BertGenerationDecoder

from models.recipes.minilm_first.card import write_card
from models.recipes.minilm_first.lists import plain_list
from models.recipes.minilm_first.prompts import PromptWriter
from models.recipes.minilm_first.steps import Folders, measure, write_curve, write_graph, write_start, write_tokenizer
from models.recipes.minilm_first.teacher import Teacher, load_tokenizer, start_weights
from models.recipes.minilm_first.train import Plan, Trainer
from models.recipes.minilm_qa.data import read_groups

GROUPS = 2500
HELD_OUT_LISTS = 64
LISTS_TO_START_FROM = 1000


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/ and eval/.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where checkpoints and results go; a stopped run goes on from there.")],
    minutes: Annotated[float, typer.Option(help="Wall-clock time for training.")] = 20.0,
    queries: Annotated[int, typer.Option(help="Evaluate on the first queries of each set.")] = 200,
    seed: Annotated[int, typer.Option(help="Seeds the choice of queries and the order.")] = 13,
    whole: Annotated[bool, typer.Option(help="Train the bi-encoder's layers too: for hours, not minutes.")] = False,
    smoke: Annotated[bool, typer.Option(help="The whole chain on next to nothing.")] = False,
) -> None:
    """Start, train, export, evaluate and describe the model; OUT/minilm-first is the folder to ship."""
    groups, held_out_lists = GROUPS, HELD_OUT_LISTS
    if smoke:
        minutes, queries, groups, held_out_lists = 0.1, 1, 16, 4
    out.mkdir(parents=True, exist_ok=True)
    folders = Folders(out)
    train, held_out = read_groups(data, seed=seed, share=0.001 if smoke else 1.0)
    random.Random(seed).shuffle(held_out)
    train, held_out = train[:groups], held_out[:held_out_lists]
    teacher = Teacher([*train, *held_out], cache=out / "teacher.pt")
    write_start(folders, [plain_list(group, teacher) for group in train[:LISTS_TO_START_FROM]], teacher)
    model = BertGenerationDecoder.from_pretrained(folders.start)
    plan = Plan(minutes=minutes, seed=seed, whole=whole)
    trainer = Trainer(
        model,
        PromptWriter(folders.start),
        train,
        teacher,
        [plain_list(group, teacher) for group in held_out],
        checkpoint=out / "checkpoint.pt",
        plan=plan,
    )
    trainer.run()
    trainer.ranker.write_into(model)
    write_tokenizer(folders.float32, AutoModel.from_pretrained(start_weights()), load_tokenizer())
    model.save_pretrained(folders.float32)
    parities = write_graph(folders.float32, folders.shipped)
    write_curve(trainer.progress, out)
    report = measure(data, folders, queries=queries)
    write_card(out / "README.md", report, trainer.progress, parities, plan=plan)
    typer.echo(f"{out / 'README.md'} says what it is worth")


if __name__ == "__main__":
    typer.run(main)
