"""Reads a shipped int8 graph back into the torch model, to be a teacher or the start of further training, and writes
other weights into it.
"""

from collections.abc import Iterable
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.tools.quantizing import to_int8
from rerankd.tools.training.model import CrossEncoder, new_config

GRAPH = "model.int8.onnx"
SHIPPED = SHIPPED_REGISTRY.parent / "minilm-qa"

_MATRICES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_ROWS, _ROW_SCALES = "_rows_int8", "_rows_scales"
_COLUMNS, _COLUMN_SCALES = "_int8", "_scales"


def read_shipped(folder: Path) -> CrossEncoder:
    """Return the model of a shipped folder: integers times their scales, so within rounding of what was trained.

    Raises:
        ValueError: the graph does not have the matrices of this many layers.
        RuntimeError: what it has is of other shapes.
    """
    tensors = {
        tensor.name: torch.tensor(numpy_helper.to_array(tensor))
        for tensor in onnx.load(folder / GRAPH).graph.initializer
    }
    config = new_config(folder)
    model = CrossEncoder(config)
    expected = model.state_dict()
    state = {name: tensor for name, tensor in tensors.items() if name in expected}
    state |= {
        name.removesuffix(_ROWS): rows.float() * tensors[name.removesuffix(_ROWS) + _ROW_SCALES]
        for name, rows in tensors.items()
        if name.endswith(_ROWS)
    }
    state |= _matrices(tensors, layers=config.num_hidden_layers) | _tables(tensors, words=config.vocab_size)
    model.load_state_dict(state)
    model.eval()
    return model


def write_shipped(model: CrossEncoder, source: Path, target: Path) -> None:
    """Write the graph of the shipped folder `source` with this model's weights to the file `target`; the inverse of
    `read_shipped`. The tables of words stay, and so does what the graph computes.

    Raises:
        ValueError: the graph does not have the matrices of this many layers.
    """
    graph = onnx.load(source / GRAPH)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    state = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    values = {name: value for name, value in state.items() if name in tensors}
    for name, value in state.items():
        if f"{name}{_ROWS}" in tensors:
            values[f"{name}{_ROWS}"], values[f"{name}{_ROW_SCALES}"] = to_int8(value, axis=1)
    for matrix, name in _matrix_names(tensors, layers=model.config.num_hidden_layers):
        values[name], scales = to_int8(state[f"{matrix}.weight"].T, axis=0)
        values[name.removesuffix(_COLUMNS) + _COLUMN_SCALES] = scales.reshape(-1)
    for name, value in values.items():
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(graph, target)


def changed_integers(one: Path, other: Path) -> tuple[int, int]:
    """How many int8 weights differ between two graphs of the same names, and how many there are."""
    ours, theirs = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (one, other)
    )
    names = [name for name in ours if name.endswith(_COLUMNS)]
    return sum(int((ours[name] != theirs[name]).sum()) for name in names), sum(ours[name].size for name in names)


def _matrix_names(tensors: Iterable[str], *, layers: int) -> list[tuple[str, str]]:
    """The model's matrices, and the graph's names of their integers: the exporter numbers matrices in the order in
    which the model multiplies by them.
    """
    integers = [name for name in tensors if name.endswith(_COLUMNS) and not name.endswith(_ROWS)]
    matrices = [f"bert.encoder.layer.{layer}.{matrix}" for layer in range(layers) for matrix in _MATRICES]
    matrices.append("word_weight")
    if len(integers) != len(matrices):
        raise ValueError(f"the graph has {len(integers)} int8 matrices, and the model has {len(matrices)}")
    return list(zip(matrices, integers, strict=True))


def _matrices(tensors: dict[str, torch.Tensor], *, layers: int) -> dict[str, torch.Tensor]:
    return {
        f"{matrix}.weight": (tensors[name].float() * tensors[name.removesuffix(_COLUMNS) + _COLUMN_SCALES]).T
        for matrix, name in _matrix_names(tensors, layers=layers)
    }


def _tables(tensors: dict[str, torch.Tensor], *, words: int) -> dict[str, torch.Tensor]:
    """The tables of words by what they hold: whether one starts there, whole numbers, or logarithms."""
    found = [tensor for tensor in tensors.values() if tensor.shape == (words,)]
    kinds = [_kind(tensor) for tensor in found]
    return dict(zip(kinds, found, strict=True))


def _kind(table: torch.Tensor) -> str:
    if bool((table <= 1).all()):
        return "starts"
    return "codes" if bool((table == table.round()).all()) else "rarities"
