"""Writes the cross-encoder as ONNX graphs: float32, and from that one int8."""

from pathlib import Path

import onnx
import torch
from transformers import BertForSequenceClassification

from app.quantizing import quantize_per_token
from models.recipes.minilm_qa.model import ClsOnlyCrossEncoder

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 20


def export_onnx(model: BertForSequenceClassification, path: Path) -> None:
    """Write the graph; both axes of its three inputs are free, its output is `logits` of [batch, 1]."""
    example = tuple(torch.ones(2, 16, dtype=torch.long) for _ in INPUT_NAMES)
    axes = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)} for name in INPUT_NAMES}
    torch.onnx.export(
        ClsOnlyCrossEncoder(model).eval(),
        example,
        path,
        input_names=list(INPUT_NAMES),
        output_names=["logits"],
        dynamic_shapes=axes,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
    )


def export_int8(float32_graph: Path, path: Path) -> None:
    """Write the graph that is shipped; a pair's score does not depend on its batch (see `app.quantizing`)."""
    model = quantize_per_token(onnx.load(float32_graph))
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)
