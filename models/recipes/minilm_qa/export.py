"""Writes the cross-encoder as a float32 ONNX graph."""

from pathlib import Path

import torch
from transformers import BertForSequenceClassification

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
