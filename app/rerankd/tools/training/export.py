"""Writes the cross-encoder as ONNX graphs: float32, and from that one int8."""

from pathlib import Path

import onnx
import torch

from rerankd.tools.quantizing import quantize_per_token
from rerankd.tools.training.model import CrossEncoder

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 20


def export_onnx(model: CrossEncoder, path: Path) -> None:
    """Write the graph; both axes of its three inputs are free, its output is `logits` of [batch, 1]."""
    segments = torch.arange(16).expand(2, 16) // 8
    example = (torch.ones_like(segments), torch.ones_like(segments), segments)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=512)
    axes = {name: {0: batch, 1: sequence} for name in INPUT_NAMES}
    torch.onnx.export(
        model.eval(),
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
    """Write the graph that is shipped; a pair's score does not depend on its batch (see `rerankd.tools.quantizing`)."""
    model = quantize_per_token(onnx.load(float32_graph))
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)
