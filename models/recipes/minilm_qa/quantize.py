"""Quantises the float32 graph to int8 so that a pair's score does not depend on the batch that it comes in.

ONNX Runtime's own dynamic quantisation takes one activation scale per tensor, that is per batch, so a document's
score changes with its neighbours. Here the weights have a scale for each output column, the embedding tables one for
each row, and an activation has either a scale for every token or one that was calibrated beforehand. Both are the same
whatever else the batch holds. Channels with outliers are evened out first, as in SmoothQuant (Xiao et al. 2023,
arXiv 2211.10438).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"
SMALLEST_SCALE = 1e-6
MIDDLE = 128
QUANTISED_TABLE_SIZE = 100_000

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Activation:
    """How an input is quantised: channels are divided by `channel_scales` (which the weights take over), then every
    token is scaled by its own largest magnitude, or, where `bounds` are given, everything is held within them.
    """

    channel_scales: Array
    bounds: tuple[float, float] | None = None

    @property
    def scale(self) -> float:
        """What one step of the uint8 stands for; 1.0 where tokens have scales of their own."""
        if self.bounds is None:
            return 1.0
        low, high = self.bounds
        return (max(high, 0.0) - min(low, 0.0)) / 255.0

    @property
    def zero_point(self) -> int:
        if self.bounds is None:
            return MIDDLE
        return int(np.clip(round(-min(self.bounds[0], 0.0) / self.scale), 0, 255))


@dataclass(frozen=True)
class Linear:
    """A MatMul with a constant weight, and the Add of its bias."""

    matmul: onnx.NodeProto
    add: onnx.NodeProto
    weight: Array
    bias_name: str

    @property
    def activation(self) -> str:
        name: str = self.matmul.input[0]
        return name


def linears_of(model: onnx.ModelProto) -> list[Linear]:
    """Return the graph's linear layers in their order."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    user_of = {name: node for node in model.graph.node for name in node.input}
    found = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            add = user_of[node.output[0]]
            [bias_name] = [name for name in add.input if name != node.output[0]]
            found.append(Linear(node, add, numpy_helper.to_array(constants[node.input[1]]), bias_name))
    return found


def quantise(source: Path, target: Path, activations: Mapping[str, Activation]) -> None:
    """Write the int8 graph; `activations` says how each linear layer's input is quantised, by its name."""
    model = onnx.load(source)
    rewriter = _Rewriter(model)
    for linear in linears_of(model):
        rewriter.replace_linear(linear, activations[linear.activation])
    for node in list(model.graph.node):
        if node.op_type == "Gather":
            rewriter.replace_table(node)
    rewriter.finish()
    onnx.checker.check_model(model)
    onnx.save(model, target)


class _Rewriter:
    """Replaces nodes of a model in place; inputs that layers share are quantised once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._removed: set[str] = set()
        self._quantised: dict[str, tuple[str, str | None]] = {}

    def replace_linear(self, linear: Linear, activation: Activation) -> None:
        name, output = linear.matmul.output[0], linear.add.output[0]
        nodes: list[onnx.NodeProto] = []
        quantised, token_scales = self._quantise_activation(linear.activation, activation, nodes)
        weight, weight_scales = _columns_to_int8(linear.weight * activation.channel_scales[:, None])
        inputs = [
            quantised,
            self._constant(f"{name}_weight", weight),
            self._constant(f"{name}_a_scale", np.float32(activation.scale)),
            self._constant(f"{name}_b_scale", weight_scales),
            self._constant(f"{name}_a_zero", np.uint8(activation.zero_point)),
            self._constant(f"{name}_b_zero", np.zeros_like(weight_scales, dtype=np.int8)),
        ]
        if token_scales is None:
            inputs.append(linear.bias_name)
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [output], domain=MICROSOFT))
        else:
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [f"{name}_unit"], domain=MICROSOFT))
            nodes.append(helper.make_node("Mul", [f"{name}_unit", token_scales], [f"{name}_scaled"]))
            nodes.append(helper.make_node("Add", [f"{name}_scaled", linear.bias_name], [output]))
        self._before[name] = nodes
        self._removed |= {name, output}

    def replace_table(self, gather: onnx.NodeProto) -> None:
        """Keep an embedding table as int8 with a scale for each row."""
        table, ids = gather.input
        output = gather.output[0]
        if table not in self._constants:
            return
        values = numpy_helper.to_array(self._constants[table])
        if values.size < QUANTISED_TABLE_SIZE:
            return
        columns, scales = _columns_to_int8(values.T)
        tables = [self._constant(f"{table}_int8", columns.T), self._constant(f"{table}_scales", scales[:, None])]
        self._before[output] = [
            helper.make_node("Gather", [tables[0], ids], [f"{output}_int8"]),
            helper.make_node("Cast", [f"{output}_int8"], [f"{output}_unit"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [tables[1], ids], [f"{output}_scale"]),
            helper.make_node("Mul", [f"{output}_unit", f"{output}_scale"], [output]),
        ]
        self._removed.add(output)

    def finish(self) -> None:
        """Put the new nodes where the old ones were, and drop what nothing reads any more."""
        graph = self._model.graph
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            nodes += self._before.get(node.output[0], [])
            if node.output[0] not in self._removed:
                nodes.append(node)
        for node in nodes:
            del node.metadata_props[:]
        read = {name for node in nodes for name in node.input}
        constants = [tensor for name, tensor in self._constants.items() if name in read]
        for field, values in ((graph.node, nodes), (graph.initializer, constants)):
            del field[:]
            field.extend(values)
        del graph.value_info[:]
        self._model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))

    def _quantise_activation(
        self, name: str, activation: Activation, nodes: list[onnx.NodeProto]
    ) -> tuple[str, str | None]:
        """Return the names of the uint8 tensor and, where tokens have scales of their own, of those."""
        if name not in self._quantised:
            even, token_scales = name, None
            if (activation.channel_scales != 1.0).any():
                inverse = self._constant(f"{name}_inverse_scales", 1.0 / activation.channel_scales)
                nodes.append(helper.make_node("Mul", [name, inverse], [f"{name}_even"]))
                even = f"{name}_even"
            if activation.bounds is None:
                even, token_scales = self._scale_tokens(even, nodes)
            scale = self._constant(f"{name}_scale", np.float32(activation.scale))
            zero = self._constant(f"{name}_zero", np.uint8(activation.zero_point))
            nodes.append(helper.make_node("QuantizeLinear", [even, scale, zero], [f"{name}_uint8"]))
            self._quantised[name] = f"{name}_uint8", token_scales
        return self._quantised[name]

    def _scale_tokens(self, name: str, nodes: list[onnx.NodeProto]) -> tuple[str, str]:
        """Bring every token's vector into [-127, 127]; return the names of the vectors and of the scales."""
        axis = self._constant("last_axis", np.array([-1], dtype=np.int64))
        steps = self._constant("one_step", np.float32(1.0 / 127.0))
        least = self._constant("smallest_scale", np.float32(SMALLEST_SCALE))
        nodes += [
            helper.make_node("Abs", [name], [f"{name}_magnitude"]),
            helper.make_node("ReduceMax", [f"{name}_magnitude", axis], [f"{name}_largest"], keepdims=1),
            helper.make_node("Mul", [f"{name}_largest", steps], [f"{name}_step"]),
            helper.make_node("Max", [f"{name}_step", least], [f"{name}_token_scales"]),
            helper.make_node("Div", [name, f"{name}_token_scales"], [f"{name}_unit"]),
        ]
        return f"{name}_unit", f"{name}_token_scales"

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if np.ndim(value) == 0:
            self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _columns_to_int8(weight: Array) -> tuple[NDArray[np.int8], Array]:
    scales = np.maximum(np.abs(weight).max(axis=0) / 127.0, SMALLEST_SCALE).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def names_of(linears: Sequence[Linear]) -> list[str]:
    """Return the names of the linear layers' inputs, each once."""
    return list(dict.fromkeys(linear.activation for linear in linears))
