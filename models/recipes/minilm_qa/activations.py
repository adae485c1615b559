"""Finds out how large the inputs of the linear layers get, for quantising them with fixed ranges."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.recipes.minilm_qa.quantize import Activation, linears_of, names_of
from models.recipes.minilm_qa.runtime import Row, model_inputs

SMALLEST_CHANNEL = 1e-3
SMOOTHING = 0.5


def observe(graph: Path, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
    """Return the inputs of every linear layer over `rows`, one token a row, by name."""
    model = onnx.load(graph)
    names = names_of(linears_of(model))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for row in rows:
        values = session.run(names, model_inputs([row]))
        for name, value in zip(names, values, strict=True):
            seen[name].append(value.reshape(-1, value.shape[-1]))
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def activations_of(
    graph: Path, rows: Sequence[Row], *, smoothing: float = SMOOTHING, per_token: bool = True
) -> dict[str, Activation]:
    """Return how to quantise every linear layer's input: smoothed, and then per token or with a fixed range.

    The channel scales are SmoothQuant's: max|x| ** smoothing / max|w| ** (1 - smoothing), 0 meaning none at all.
    """
    weights: dict[str, list[NDArray[np.float32]]] = {}
    for linear in linears_of(onnx.load(graph)):
        weights.setdefault(linear.activation, []).append(np.abs(linear.weight).max(axis=1))
    return {
        name: _activation(values, np.max(weights[name], axis=0), smoothing=smoothing, per_token=per_token)
        for name, values in observe(graph, rows).items()
    }


def _activation(
    values: NDArray[np.float32], weights: NDArray[np.float32], *, smoothing: float, per_token: bool
) -> Activation:
    scales = np.ones_like(weights)
    if smoothing:
        largest = np.maximum(np.abs(values).max(axis=0), SMALLEST_CHANNEL)
        scales = (largest**smoothing / weights ** (1.0 - smoothing)).astype(np.float32)
    if per_token:
        return Activation(scales)
    even = values / scales
    return Activation(scales, (float(even.min()), float(even.max())))
