"""`python -m models.recipes.minilm_qa.weigh`: nDCG@10 of the shipped model in float32, for any weights of signals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from models.recipes.minilm_qa.evaluate import EVALUATION_SETS, Candidates, EvaluationSet, read_candidates
from models.recipes.minilm_qa.interpolation import SIGNAL_WEIGHTS, scale_of, weigh_signals
from models.recipes.minilm_qa.shared_texts import SharedTexts
from models.recipes.minilm_qa.teacher import load_tokenizer
from rerankd.tools.training.model import CrossEncoder
from rerankd.tools.training.runtime import encode_pairs
from rerankd.tools.training.shipped import SHIPPED, read_shipped


def weights_of(text: str) -> tuple[float, ...]:
    """Read `cosine,BM25,soft match,share`.

    Raises:
        typer.BadParameter: it is not as many numbers as there are signals.
    """
    try:
        weights = tuple(map(float, text.split(",")))
    except ValueError:
        weights = ()
    if len(weights) != len(CrossEncoder.SIGNALS):
        raise typer.BadParameter(f"{text!r} is not {len(CrossEncoder.SIGNALS)} numbers with commas between")
    return weights


def sets_of(names: Sequence[str]) -> list[EvaluationSet]:
    """Return the evaluation sets of these names, all if there is none.

    Raises:
        typer.BadParameter: there is no such set.
    """
    known = {chosen.name: chosen for chosen in EVALUATION_SETS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"there is no set {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(EVALUATION_SETS)


def head_inputs_of(candidates: Candidates, model: CrossEncoder, file: Path) -> torch.Tensor:
    """Return the classifier's inputs for a set's pairs, from the file if an earlier run has written it."""
    if not file.exists():
        rows = encode_pairs(load_tokenizer(), candidates.pairs)
        torch.save(SharedTexts(model).head_inputs(rows, progress=candidates.name), file)
    inputs: torch.Tensor = torch.load(file)
    return inputs


@torch.inference_mode()
def ndcg_by_weights(
    candidates: Candidates,
    inputs: torch.Tensor,
    model: CrossEncoder,
    choices: Sequence[Sequence[float]],
    *,
    scale: float,
) -> list[float]:
    """Return nDCG@10 with each choice of weights, times `scale`; the rest of the head stays."""
    figures = []
    for weights in choices:
        weigh_signals(model, weights, scale=scale)
        figures.append(candidates.ndcg(candidates.run_of(model.classifier(inputs)[:, 0].tolist())))
    return figures


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train/ and eval/.", exists=True, file_okay=False)],
    out: Annotated[
        Path, typer.Option(help="Keeps what was computed, for the next time: a folder for each trained model.")
    ],
    weights: Annotated[
        list[str] | None, typer.Option(help="cosine,BM25,soft match,share; may be repeated. Default: those shipped.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A set; may be repeated. Default: all.")] = None,
) -> None:
    """Compute the head's inputs once, in float32 arithmetic over the shipped weights, and weigh them as asked."""
    choices = [weights_of(text) for text in weights or ()] or [SIGNAL_WEIGHTS]
    out.mkdir(parents=True, exist_ok=True)
    model, figures = read_shipped(SHIPPED), list[list[float]]()
    scale = scale_of(model)
    sets = sets_of(only or ())
    for chosen in sets:
        candidates = read_candidates(data, chosen)
        inputs = head_inputs_of(candidates, model, out / f"{chosen.name}.pt")
        figures.append(ndcg_by_weights(candidates, inputs, model, choices, scale=scale))
    Console().print(_table(sets, choices, figures))


def _table(
    sets: Sequence[EvaluationSet], choices: Sequence[Sequence[float]], figures: Sequence[Sequence[float]]
) -> Table:
    table = Table("set", title="nDCG@10, float32")
    for weights in choices:
        table.add_column(",".join(f"{weight:g}" for weight in weights), overflow="fold")
    for chosen, of_set in zip(sets, figures, strict=True):
        table.add_row(chosen.name, *(f"{value:.4f}" for value in of_set))
    table.add_row("mean", *(f"{sum(values) / len(values):.4f}" for values in zip(*figures, strict=True)))
    return table


if __name__ == "__main__":
    typer.run(main)
