"""`python -m models.recipes.minilm_qa.quantization_study`: compares ways of quantizing a finished run's graph."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from rich.console import Console
from rich.table import Table

from models.recipes.minilm_qa.data import read_groups
from models.recipes.minilm_qa.steps import Folders
from models.recipes.minilm_qa.teacher import load_tokenizer
from rerankd.tools.training.runtime import OnnxScorer, encode_pairs, largest_batch_effect, pairs_per_s

REPEATS = 3


def write_variants(folders: Folders) -> dict[str, Path]:
    """Write a graph for every way of quantizing; return their paths by name."""
    source, study = folders.float32_graph, folders.out / "study"
    study.mkdir(exist_ok=True)
    paths = {"float32": source, "int8, per token (shipped)": folders.int8_graph}
    bare = onnx.load(source)
    del bare.graph.value_info[:]  # the exporter's shapes of constants would contradict the quantizer's
    paths["int8, ONNX Runtime dynamic"] = study / "dynamic.onnx"
    quantize_dynamic(
        bare, paths["int8, ONNX Runtime dynamic"], per_channel=True, weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gather"],
    )  # fmt: skip
    config = DefaultWeightOnlyQuantConfig(block_size=128, is_symmetric=True, accuracy_level=4, bits=8)
    blockwise = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    blockwise.process()
    paths["8 bits, MatMulNBits"] = study / "nbits.onnx"
    blockwise.model.save_model_to_file(str(paths["8 bits, MatMulNBits"]))
    return paths


def main(
    *,
    data: Annotated[Path, typer.Option(help="The run's data folder.", exists=True)],
    out: Annotated[Path, typer.Option(help="The run's folder.", exists=True)],
    pairs: Annotated[int, typer.Option(help="Held-out pairs to measure on.")] = 600,
    seed: int = 13,
) -> None:
    """Print speed, error and batch effect of every variant, and write them to OUT/study/study.json."""
    _, held_out = read_groups(data, seed=seed)
    texts = [(group.query, text) for group in held_out for text in (group.positive, *group.negatives[:5])]
    rows = encode_pairs(load_tokenizer(), texts)
    folders = Folders(out)
    paths = write_variants(folders)
    rows = rows[1 :: max(1, len(rows) // pairs)]
    reference = OnnxScorer(paths["float32"]).score(rows)
    table = Table("variant", "pairs/s", "largest difference", "mean difference", "batch effect", "MB")
    study = {}
    for name, path in paths.items():
        scorer = OnnxScorer(path)
        difference = np.abs(scorer.score(rows) - reference)
        study[name] = {
            "pairs/s": round(max(pairs_per_s(scorer, rows) for _ in range(REPEATS)), 1),
            "largest difference": round(float(difference.max()), 4),
            "mean difference": round(float(difference.mean()), 4),
            "batch effect": largest_batch_effect(scorer, rows[:200]),
            "MB": round(path.stat().st_size / 1e6, 1),
        }
        table.add_row(name, *(f"{value:.3g}" for value in study[name].values()))
    (folders.out / "study" / "study.json").write_text(json.dumps(study, indent=1))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
