"""Writes ONNX graphs to files, and makes the other precisions of a float32 graph."""

from pathlib import Path
from typing import Final, Literal

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from rerankd.tools.quantizing import quantize_per_token, quantize_weights

Precision = Literal["float32", "float16", "int8", "int8-weights"]

GRAPHS: Final[dict[Precision, str]] = {
    "float32": "model.onnx",
    "float16": "model.float16.onnx",
    "int8": "model.int8.onnx",
    "int8-weights": "model.int8-weights.onnx",
}
# Protocol buffers hold at most 2 GiB; larger weights go into a file beside the graph.
LARGEST_FILE: Final = int(1.8 * 2**30)


def convert_graph(graph: Path, precision: Precision, *, largest_file: int) -> Path:
    """Write a float32 graph in another precision beside it."""
    converted = graph.parent / GRAPHS[precision]
    if precision == "float16":
        # The exporter wrote all types and shapes; inferring them again fails on graphs over 2 GiB.
        half = convert_float_to_float16(onnx.load(graph), keep_io_types=True, disable_shape_infer=True)
        save_graph(half, converted, largest_file=largest_file)
    elif precision == "int8":
        save_graph(quantize_per_token(onnx.load(graph)), converted, largest_file=largest_file)
    elif precision == "int8-weights":
        save_graph(quantize_weights(onnx.load(graph)), converted, largest_file=largest_file)
    return converted


def save_graph(model: onnx.ModelProto, graph: Path, *, largest_file: int) -> None:
    """Write a graph without the stack traces that the exporter put into every node."""
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    delete_graph(graph)
    onnx.save(
        model,
        graph,
        save_as_external_data=sum(len(tensor.raw_data) for tensor in model.graph.initializer) > largest_file,
        location=_weights_beside(graph).name,
    )


def delete_graph(graph: Path) -> None:
    graph.unlink(missing_ok=True)
    _weights_beside(graph).unlink(missing_ok=True)


def graph_files(graph: Path) -> list[Path]:
    """The graph, and the file with its weights if there is one."""
    return [file for file in (graph, _weights_beside(graph)) if file.is_file()]


def _weights_beside(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}_data")
