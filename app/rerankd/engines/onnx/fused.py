"""Runs an int8 graph: our kernels compute its embeddings and encoder layers, ONNX Runtime the rest (docs/adr/0012)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import pad
from rerankd.engines.onnx.encoder_names import (
    AnyLayerNames,
    EmbeddingsNames,
    LayerNames,
    LinearNames,
    NormNames,
    PaddingBias,
    Positions,
    read_names,
)
from rerankd.engines.onnx.encoder_patterns import find_encoder
from rerankd.engines.onnx.kernel_support import NO_INT8_LAYERS
from rerankd.engines.onnx.kernels import MASKED, Embeddings, Layer, LayerNorm, Layers, Linear, Rotary, lanes
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding

Inputs = Mapping[str, IntArray]
# Those of AVX-512, the first instruction set that there were kernels for.
_LANES: Final = 16


class FusedSession:
    """Replaces a session of the whole graph. Runs the part before the layers, the layers, and the part after them.

    The layers' input comes from `embeddings`, with the names of the tensors that select rows, or from `before`, which
    is None if NumPy makes every tensor (`simple`). `padded` says whether the layers compute padding.
    """

    def __init__(
        self,
        simple: Mapping[str, Callable[[Inputs], NDArray[Any]]],
        before: ort.InferenceSession | None,
        embeddings: tuple[Embeddings, Sequence[str]] | None,
        layers: Layers,
        after: ort.InferenceSession,
        *,
        states: tuple[str, str],
        bias: str,
    ) -> None:
        self._simple = simple
        self._before = before
        self._embeddings = embeddings
        self._layers = layers
        self._after = after
        self._first, self._last = states
        self._bias = bias
        self._made = [node.name for node in before.get_outputs()] if before else []
        self._taken = {node.name for node in after.get_inputs()}
        self.padded = not self._skips_padding()
        # Float sums have another order with fewer lanes, so the last bits of a score differ.
        self.name = "fused" if lanes() == _LANES else f"fused-{lanes()}"

    def get_inputs(self) -> Sequence[ort.NodeArg]:
        return [node for node in self._after.get_inputs() if node.name not in (self._last, self._bias)]

    def get_outputs(self) -> Sequence[ort.NodeArg]:
        outputs: Sequence[ort.NodeArg] = self._after.get_outputs()
        return outputs

    def get_modelmeta(self) -> ort.ModelMetadata:
        return self._after.get_modelmeta()

    def _skips_padding(self) -> bool:
        """Whether the graph masks padding for every query, so that the layers skip it. Found out by running it."""
        short, long = Encoding(np.ones(4, dtype=np.int64), 2), Encoding(np.ones(9, dtype=np.int64), 3)
        alone, both = (self._given(self._inputs_of(batch))[self._bias] for batch in ([short], [short, long]))
        padding = both[0, ..., alone.shape[-1] :]
        return len(both) == 2 and bool((padding <= MASKED).all())

    def _inputs_of(self, batch: Sequence[Encoding]) -> Inputs:
        padded = asdict(pad(batch, pad_id=0))
        types = {"tensor(int32)": np.int32}
        return {node.name: padded[node.name].astype(types.get(node.type, np.int64)) for node in self.get_inputs()}

    def _given(self, inputs: Inputs) -> dict[str, Any]:
        """The inputs, and the tensors that the layers need."""
        given: dict[str, Any] = {**inputs, **{name: make(inputs) for name, make in self._simple.items()}}
        if self._before is not None:
            given.update(zip(self._made, self._before.run(self._made, inputs), strict=True))
        return given

    def run(self, outputs: Sequence[str], inputs: Inputs) -> Sequence[FloatArray]:
        """Compute outputs from inputs, as a session does."""
        given = self._given(inputs)
        if self._embeddings is not None:
            embeddings, rows = self._embeddings
            given[self._first] = embeddings.forward([given[name] for name in rows])
        given[self._last] = self._layers.forward(given[self._first], given[self._bias])
        scores: Sequence[FloatArray] = self._after.run(
            outputs, {name: array for name, array in given.items() if name in self._taken}
        )
        return scores


def open_fused(graph: Path, open_session: Callable[[bytes], ort.InferenceSession]) -> FusedSession:
    """Split a graph and open its parts.

    Raises:
        ConfigError: the graph has no layers that the kernels can compute.
    """
    model = onnx.load(graph)
    names = read_names(model) or find_encoder(model.graph)
    if names is None:
        raise ConfigError(NO_INT8_LAYERS)
    constants = _Constants(model.graph)
    first, last, bias = names.layers[0].source, names.layers[-1].output, names.layers[0].attention_bias
    indices = [table.indices for table in names.embeddings.tables] if names.embeddings else []
    inputs = {tensor.name for tensor in model.graph.input}
    others = [name for name in [*(indices or [first]), bias] if name not in inputs and name not in names.simple]
    after = _part(model, given={last: 3, bias: 4}, wanted=[])
    weights = {layer.up.weights for layer in names.layers}
    if any(tensor.name in weights for tensor in after.graph.initializer):
        raise ConfigError(
            "the graph reads values from inside its encoder layers; export the model with `rerankd export`"
        )
    return FusedSession(
        {name: constants.simple(made) for name, made in names.simple.items()},
        open_session(_part(model, given={}, wanted=others).SerializeToString()) if others else None,
        (constants.embeddings(names.embeddings), indices) if names.embeddings else None,
        Layers([constants.layer(layer) for layer in names.layers]),
        open_session(after.SerializeToString()),
        states=(first, last),
        bias=bias,
    )


def _part(model: onnx.ModelProto, *, given: Mapping[str, int], wanted: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph that computes the `wanted` tensors, or else its outputs, from its inputs and the float
    tensors that are `given` with their ranks.
    """
    graph = model.graph
    outputs = [helper.make_empty_tensor_value_info(name) for name in wanted] or graph.output
    needed = {output.name for output in outputs}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output) - given.keys():
            nodes.append(node)
            needed.update(node.input)
    part = helper.make_graph(
        list(reversed(nodes)),
        graph.name,
        [
            *graph.input,
            *(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
                for name, rank in given.items()
                if name in needed
            ),
        ],
        outputs,
        [tensor for tensor in graph.initializer if tensor.name in needed],
    )
    made = helper.make_model(
        part, ir_version=model.ir_version, opset_imports=model.opset_import, functions=model.functions
    )
    made.metadata_props.extend(model.metadata_props)
    return made


class _Constants:
    """A graph's constants by name, as the kernels take them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._rotary: dict[str, Rotary] = {}

    def layer(self, names: AnyLayerNames) -> Layer:
        return Layer(
            **self._of_kind(names),
            output=self._linear(names.attention_output),
            up=self._linear(names.up),
            down=self._linear(names.down),
            attention_norm=self._norm(names.attention_norm),
            output_norm=self._norm(names.output_norm),
            heads=self._array(names.attention_output.weights).shape[0] // names.head_size,
            score_scale=names.score_scale,
            first_row=names.first_row,
        )

    def _of_kind(self, names: AnyLayerNames) -> dict[str, Any]:
        """The arguments in which both kinds of layers differ."""
        if isinstance(names, LayerNames):
            return {"query_key_value": self._linear(names.query, names.key, names.value)}
        return {
            "query_key_value": self._linear(names.query_key_value),
            "pre_norm": True,
            "rotary": self._rotary_positions(names.frequencies),
            "window": names.window,
        }

    def _rotary_positions(self, frequencies: str) -> Rotary:
        """Shared by all layers that read the same constant."""
        if frequencies not in self._rotary:
            self._rotary[frequencies] = Rotary(self._array(frequencies).reshape(-1))
        return self._rotary[frequencies]

    def embeddings(self, names: EmbeddingsNames) -> Embeddings:
        tables = [(self._array(table.vectors), self._array(table.scales).reshape(-1)) for table in names.tables]
        return Embeddings(tables, norm=self._norm(names.norm))

    def simple(self, names: PaddingBias | Positions) -> Callable[[Inputs], NDArray[Any]]:
        if isinstance(names, PaddingBias):
            visible, masked = np.float32(0), np.float32(names.masked)
            return lambda inputs: np.where(inputs["attention_mask"][:, None, None, :], visible, masked)
        positions = self._array(names.constant)
        return lambda inputs: positions[:, : inputs["input_ids"].shape[1]]

    def _linear(self, *parts: LinearNames) -> Linear:
        """One matmul, or several of the same input side by side."""
        weights, scales, biases = (
            np.concatenate(arrays, axis=-1)
            for arrays in (
                [self._array(part.weights) for part in parts],
                [self._array(part.scales) for part in parts],
                [self._bias(part.bias, like=part.scales) for part in parts],
            )
        )
        return Linear(weights, scales=scales, bias=biases)

    def _norm(self, names: NormNames) -> LayerNorm:
        bias = self._bias(names.bias, like=names.weight)
        return LayerNorm(weight=self._array(names.weight), bias=bias, epsilon=names.epsilon)

    def _bias(self, name: str | None, *, like: str) -> NDArray[Any]:
        return np.zeros_like(self._array(like)) if name is None else self._array(name)

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._tensors:
            raise ConfigError(f"the graph has no constant {name!r}, which its metadata names")
        array: NDArray[Any] = numpy_helper.to_array(self._tensors[name])
        return array
