"""The steps around training: the start, the folder that torch serves, the graph to ship, and what is measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import AutoModel, BertModel, PreTrainedTokenizerBase

from models.recipes.minilm_first.lists import RankedList
from models.recipes.minilm_first.prompts import LONGEST_PROMPT, OPTIONS, PromptWriter, scorer_spec
from models.recipes.minilm_first.start import starting_config, starting_model
from models.recipes.minilm_first.teacher import Teacher, load_tokenizer, start_weights
from models.recipes.minilm_first.train import Progress
from models.recipes.minilm_first.trust import fit_start
from rerankd.cli import cli
from rerankd.tools.exporting import Parity, Precision, export_language_model

EVALUATION_SETS = ("scifact", "squad_dev")
PROMPTS_TO_SET_NORMS_BY = 4
# what a tokenizer needs; the rest that is saved tells how this run happened to load and cut
TOKENIZER_SETTINGS = (
    "cls_token",
    "do_lower_case",
    "mask_token",
    "pad_token",
    "sep_token",
    "tokenizer_class",
    "unk_token",
)


@dataclass(frozen=True)
class Folders:
    """Where a run writes."""

    out: Path

    @property
    def start(self) -> Path:
        """The model before training."""
        return self.out / "start"

    @property
    def float32(self) -> Path:
        """What the engine torch-causal serves."""
        return self.out / "float32"

    @property
    def shipped(self) -> Path:
        """What the engine onnx serves: the graph with int8 weights."""
        return self.out / "minilm-first"

    @property
    def report(self) -> Path:
        return self.out / "report.json"


def write_start(folders: Folders, lists: Sequence[RankedList], teacher: Teacher) -> None:
    """Fit the start to lists in the first stage's order; what a stopped run has written stays."""
    if (folders.start / "model.safetensors").exists():
        return
    encoder = AutoModel.from_pretrained(start_weights()).eval()
    tokenizer = load_tokenizer()
    write_tokenizer(folders.start, encoder, tokenizer)
    cosines = [teacher.cosines(ranked.query, ranked.texts) for ranked in lists]
    start = fit_start(cosines, [ranked.order[0] for ranked in lists])
    writer = PromptWriter(folders.start)
    prompts = [writer.write(ranked.query, ranked.texts) for ranked in lists[:PROMPTS_TO_SET_NORMS_BY]]
    starting_model(encoder, tokenizer, start, prompts).save_pretrained(folders.start)
    (folders.out / "start.json").write_text(json.dumps({"cosine": start.cosine_weight, "trust": list(start.trust)}))


def write_tokenizer(folder: Path, encoder: BertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what a scorer reads: the tokenizer, and the configuration of the model that is to be."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    kept = {name: settings[name] for name in TOKENIZER_SETTINGS if name in settings}
    kept["model_max_length"] = LONGEST_PROMPT
    (folder / "tokenizer_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    starting_config(encoder, tokenizer).save_pretrained(folder)


def write_graph(source: Path, target: Path, *, precision: Precision = "int8-weights") -> list[Parity]:
    """Write the graph of a folder's model, with the identifiers' rows alone. Its marks do not bear rounded activations:
    with integer products a short run lost .04 of nDCG@10.
    """
    return export_language_model(source, target, method="first", spec=scorer_spec(source), precisions=[precision])


def measure(data: Path, folders: Folders, *, queries: int) -> dict[str, Any]:
    """Evaluate BM25, the graph, and the model before training, through the service's own pipeline; a stopped evaluation
    goes on.
    """
    graph = 'engine_options = { file = "model.int8-weights.onnx" }'
    entries = {
        "minilm-first": _entry("minilm-first", folders.shipped, graph),
        "start": _entry("start", folders.start, 'engine = "torch-causal"'),
    }
    registry = folders.out / "registry.toml"
    registry.write_text("".join(entries.values()), encoding="utf-8")
    sets = [str(data / "eval" / name) for name in EVALUATION_SETS]
    models = [argument for name in entries for argument in ("--model", name)]
    options = ["--queries", str(queries), "--registry", str(registry), "--output", str(folders.report)]
    cli(["eval", *sets, *models, *options], standalone_mode=False)
    report: dict[str, Any] = json.loads(folders.report.read_text(encoding="utf-8"))
    return report


def write_curve(progress: Progress, folder: Path) -> None:
    """Write the losses and the held-out figures as `curve.json` and `curve.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    curve = {"losses": progress.losses, "held_out_ndcg": progress.held_out}
    (folder / "curve.json").write_text(json.dumps(curve) + "\n", encoding="utf-8")
    figure = Figure(figsize=(6.0, 3.2), layout="constrained", dpi=100)
    left = figure.subplots()
    lists, losses = zip(*progress.losses, strict=True)
    left.plot(lists, _smooth(losses), color="#1b6ca8", linewidth=1)
    left.set(xlabel="lists", ylabel="loss (mean of the last 20 steps)")
    right = left.twinx()
    right.plot(*zip(*progress.held_out, strict=True), "o--", color="#b8430b")
    right.set_ylabel("held-out nDCG", color="#b8430b")
    figure.savefig(folder / "curve.png", format="png")


def _smooth(values: Sequence[float], *, over: int = 20) -> list[float]:
    windows = [values[max(0, end - over) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def _entry(name: str, folder: Path, engine: str) -> str:
    options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in OPTIONS.items())
    return (
        f'[[model]]\nname = {json.dumps(name)}\nscorer = "first"\npath = {json.dumps(str(folder.resolve()))}\n'
        f"{engine}\noptions = {{ {options} }}\n\n"
    )
