"""The steps between a trained model and a folder to ship, each written under the run's own folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from models.recipes.minilm_qa.calibrate import Calibration, calibrate, draw_reliability, fold, score_held_out
from models.recipes.minilm_qa.data import Group
from models.recipes.minilm_qa.evaluate import (
    EVALUATION_SETS,
    Candidates,
    EvaluationSet,
    PairScores,
    bi_encoder_scores,
    ndcg_of,
    read_candidates,
    unanswerable_auc,
)
from rerankd.tools.training.export import export_int8, export_onnx
from rerankd.tools.training.model import CrossEncoder
from rerankd.tools.training.runtime import OnnxScorer, encode_pairs
from rerankd.tools.training.ship import write_golden, write_hugging_face_folder

FLOAT32 = "float32"
INT8 = "int8"


@dataclass(frozen=True)
class Folders:
    """Where a run writes: the float32 model, its graph, the folder to ship, and its figures."""

    out: Path

    @property
    def float32(self) -> Path:
        return self.out / "float32"

    @property
    def float32_graph(self) -> Path:
        return self.out / "model.onnx"

    @property
    def shipped(self) -> Path:
        return self.out / "minilm-qa"

    @property
    def int8_graph(self) -> Path:
        return self.shipped / "model.int8.onnx"

    @property
    def calibration(self) -> Path:
        return self.out / "calibration.json"

    @property
    def reliability(self) -> Path:
        return self.shipped / "reliability.png"

    @property
    def quality(self) -> Path:
        return self.out / "quality.json"


def finish(
    model: CrossEncoder,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Group],
    folders: Folders,
) -> Calibration:
    """Calibrate, export and quantize; the model is changed by its calibration."""
    calibration = calibrate(score_held_out(model, tokenizer, held_out))
    fold(calibration, model)
    draw_reliability(calibration, folders.reliability)
    write_hugging_face_folder(model, tokenizer, folders.float32, weights=True)
    write_hugging_face_folder(model, tokenizer, folders.shipped, weights=False)
    export_onnx(model, folders.float32_graph)
    export_int8(folders.float32_graph, folders.int8_graph)
    largest = write_golden(model, tokenizer, folders.int8_graph, folders.shipped / "golden.json")
    folders.calibration.write_text(json.dumps(asdict(calibration) | {"golden_difference": largest}, indent=1))
    return calibration


@dataclass(frozen=True)
class Measured:
    """These sets, about the first `most_pairs` pairs of each, `depth` candidates of each query. float32 and int8 are
    also compared on the first `float32_pairs`.
    """

    sets: tuple[EvaluationSet, ...] = EVALUATION_SETS
    most_pairs: int = 100_000
    float32_pairs: int = 5_000
    depth: int = 100


def measure(
    data: Path, tokenizer: PreTrainedTokenizerBase, folders: Folders, measured: Measured
) -> dict[str, dict[str, float]]:
    """Return nDCG@10 by set and ranker. What a stopped run has measured is not measured again."""
    figures: dict[str, dict[str, float]] = {}
    if folders.quality.exists():
        figures = json.loads(folders.quality.read_text())
    int8, float32 = (_scored(tokenizer, graph) for graph in (folders.int8_graph, folders.float32_graph))
    for chosen in measured.sets:
        if chosen.name not in figures:
            whole = read_candidates(data, chosen, depth=measured.depth).first(pairs=measured.most_pairs)
            part = whole.first(pairs=measured.float32_pairs)
            figures[chosen.name] = _figures_of(whole, part, int8=int8, float32=float32)
            folders.quality.write_text(json.dumps(figures, indent=1))
    if "squad2_dev" not in figures:
        figures["squad2_dev"] = {"AUC": unanswerable_auc(data, int8, most_pairs=measured.most_pairs)}
        folders.quality.write_text(json.dumps(figures, indent=1))
    return figures


def _figures_of(whole: Candidates, part: Candidates, *, int8: PairScores, float32: PairScores) -> dict[str, float]:
    scored = int8(whole.pairs)
    figures = {"queries": float(len(whole.queries)), "float32 queries": float(len(part.queries))}
    figures |= ndcg_of(whole, {"bi-encoder": bi_encoder_scores(whole.pairs), INT8: scored})
    exact = float32(part.pairs)
    compared = ndcg_of(part, {FLOAT32: exact, INT8: scored[: len(exact)]})
    return figures | {f"{name} (part)": compared[name] for name in (FLOAT32, INT8)}


def _scored(tokenizer: PreTrainedTokenizerBase, graph: Path) -> PairScores:
    scorer = OnnxScorer(graph)

    def score(pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        logits: list[float] = scorer.score(encode_pairs(tokenizer, pairs)).tolist()
        return logits

    return score
