"""Writes the model card from what the run has measured; nothing in it is typed by hand."""

import json
from pathlib import Path
from string import Template
from typing import Any

from models.recipes.minilm_qa.interpolation import SIGNAL_WEIGHTS
from models.recipes.minilm_qa.steps import FLOAT32, INT8, Folders
from models.recipes.minilm_qa.train import Progress
from rerankd.tools.training.ship import sha256

TEMPLATE = Path(__file__).with_name("card.md")


def write_card(folders: Folders, progress: Progress, *, seed: int, minutes: float) -> None:
    """Write README.md into the folder to ship. The tables of the quantization study and of the
    audit are in it once those have run.
    """
    calibration = json.loads(folders.calibration.read_text(encoding="utf-8"))
    quality = json.loads(folders.quality.read_text(encoding="utf-8"))
    study = folders.out / "study" / "study.json"
    audit = folders.out / "audit.md"
    files = [path for path in sorted(folders.shipped.iterdir()) if path.name != "README.md"]
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        seed=seed,
        minutes=f"{minutes:g}",
        elapsed=f"{progress.elapsed_s / 60:.0f}",
        steps=f"{progress.steps:,}",
        pairs=f"{progress.pairs:,}",
        quality=_quality_table(quality),
        largest_loss=f"{_largest_loss(quality):.4f}",
        auc=f"{quality['squad2_dev']['AUC']:.3f}",
        slope=f"{calibration['slope']:.3f}",
        bias=f"{calibration['bias']:.3f}",
        accuracy=f"{calibration['accuracy']:.3f}",
        error=f"{calibration['expected_error']:.3f}",
        reliability=_reliability(calibration["reliability"]),
        **dict(zip(("cosine", "bm25", "soft", "share"), SIGNAL_WEIGHTS, strict=True)),
        study=_study_table(json.loads(study.read_text(encoding="utf-8"))) if study.exists() else "Not run.",
        audit=audit.read_text(encoding="utf-8").strip() if audit.exists() else "Not run.",
        files=_table(("file", "bytes", "sha256"), [(p.name, f"{p.stat().st_size:,}", sha256(p)) for p in files]),
        weights_sha256=sha256(folders.float32 / "model.safetensors"),
    )
    (folders.shipped / "README.md").write_text(card, encoding="utf-8")


def _quality_table(quality: dict[str, dict[str, float]]) -> str:
    rows = [
        (
            name,
            f"{figures['queries']:.0f}",
            *(f"{figures[ranker]:.3f}" for ranker in ("BM25", "bi-encoder", INT8)),
            f"{figures['float32 queries']:.0f}",
            *(f"{figures[f'{ranker} (part)']:.4f}" for ranker in (FLOAT32, INT8)),
        )
        for name, figures in quality.items()
        if "BM25" in figures
    ]
    heads = ("set", "queries", "BM25", "bi-encoder", "ours, int8", "the first queries", "ours, float32", "ours, int8")
    return _table(heads, rows)


def _reliability(rows: list[tuple[float, float]]) -> str:
    picture = "![How many of the pairs with a score are relevant](reliability.png)"
    return f"{picture}\n\n{_table(('mean relevance_score', 'share that is relevant'), rows)}"


def _largest_loss(quality: dict[str, dict[str, float]]) -> float:
    compared = [figures for figures in quality.values() if f"{INT8} (part)" in figures]
    return max(figures[f"{FLOAT32} (part)"] - figures[f"{INT8} (part)"] for figures in compared)


def _study_table(study: dict[str, dict[str, float]]) -> str:
    heads = ("variant", *next(iter(study.values())))
    return _table(heads, [(name, *(f"{value:.3g}" for value in figures.values())) for name, figures in study.items()])


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
