"""Quantizes a float32 ONNX graph to int8 so that a sequence's score does not depend on its batch.

There are two ways: int8 matmuls, which are fast, and int8 weights only, for models that lose quality with quantized
inputs.

ONNX Runtime's dynamic quantization uses one activation scale per tensor, so that a document's score depends on its
batch. Here each token's vector and each column of a weight matrix has its own scale. Embedding tables become int8 with
a scale per row. Everything without a constant matrix (attention itself, small heads) stays float32.
"""

from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rerankd.domain import FloatArray
from rerankd.engines.onnx.encoder_names import write_names
from rerankd.engines.onnx.encoder_patterns import find_encoder

_CONTRIB: Final = "com.microsoft"
_INT8_MAX: Final = 127
_ZERO_POINT: Final = 128
_MIN_SCALE: Final = 1e-12
# A matrix with fewer elements gains nothing from int8.
_MIN_MATRIX_SIZE: Final = 256


def quantize_per_token(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a graph in place and return it: int8 matmuls. Its metadata names the encoder layers that our kernels can
    compute. Its weights must be loaded.
    """
    _Rewriter(model.graph, int8_matmuls=True).rewrite()
    if all(opset.domain != _CONTRIB for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    names = find_encoder(model.graph)
    if names is not None:
        write_names(model, names)
    return model


def quantize_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a graph in place and return it: int8 weights, a quarter of the size, and matmuls in float32 as before. A
    runtime that folds constants restores the float32 weights when it loads the graph.
    """
    _Rewriter(model.graph, int8_matmuls=False).rewrite()
    return model


class _Rewriter:
    """Replaces nodes of a graph. An activation that several matmuls read is quantized once."""

    def __init__(self, graph: onnx.GraphProto, *, int8_matmuls: bool) -> None:
        self._graph = graph
        self._int8_matmuls = int8_matmuls
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._quantized: dict[str, tuple[str, str]] = {}

    def rewrite(self) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            nodes += self._replacement(node)
        self._put(nodes)
        # shapes and types of inner tensors are no longer true
        del self._graph.value_info[:]

    def _replacement(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        weight = self._matrix(node)
        if weight is None:
            return [node]
        if node.op_type == "Gather":
            return self._table(node, weight)
        return self._linear(node, weight) if self._int8_matmuls else self._weights_only(node, weight)

    def _matrix(self, node: onnx.NodeProto) -> FloatArray | None:
        """The constant matrix of a matmul or an embedding, if it is worth quantizing."""
        position = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        if position is None or node.input[position] not in self._weights:
            return None
        tensor = self._weights[node.input[position]]
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2:
            return None
        if np.prod(tensor.dims) < _MIN_MATRIX_SIZE or _attribute(node, "axis") != 0:
            return None
        return np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)

    def _linear(self, node: onnx.NodeProto, weight: FloatArray) -> list[onnx.NodeProto]:
        (activation, name), output = node.input, node.output[0]
        before: list[onnx.NodeProto] = []
        if activation not in self._quantized:
            before = self._quantize(activation, width=weight.shape[0])
        integers, token_scales = self._quantized[activation]
        columns, scales = to_int8(weight, axis=0)
        inputs = [
            integers,
            self._own_constant(f"{name}_int8", columns),
            self._constant("rerankd_one", np.float32(1)),
            self._constant(f"{name}_scales", scales.reshape(-1)),
            self._constant("rerankd_middle", np.uint8(_ZERO_POINT)),
            self._own_constant(f"{name}_zeros", np.zeros(weight.shape[1], dtype=np.int8)),
        ]
        return [
            *before,
            helper.make_node("MatMulIntegerToFloat", inputs, [f"{output}_unscaled"], domain=_CONTRIB),
            helper.make_node("Mul", [f"{output}_unscaled", token_scales], [output]),
        ]

    def _weights_only(self, node: onnx.NodeProto, weight: FloatArray) -> list[onnx.NodeProto]:
        (activation, name), output = node.input, node.output[0]
        columns, scales = to_int8(weight, axis=0)
        integers, factors = self._constant(f"{name}_int8", columns), self._constant(f"{name}_scales", scales)
        return [
            helper.make_node("Cast", [integers], [f"{output}_weights_unscaled"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{output}_weights_unscaled", factors], [f"{output}_weights"]),
            helper.make_node("MatMul", [activation, f"{output}_weights"], [output]),
        ]

    def _quantize(self, name: str, *, width: int) -> list[onnx.NodeProto]:
        """Quantize every vector by its own largest magnitude. No tensor of magnitudes or quotients is written to memory
        (docs/adr/0017).
        """
        self._quantized[name] = f"{name}_uint8", f"{name}_scale"
        last_axis = self._constant("rerankd_last_axis", np.array([-1], dtype=np.int64))
        step = self._constant("rerankd_step", np.float32(1 / _INT8_MAX))
        step_down = self._constant("rerankd_step_down", np.float32(-1 / _INT8_MAX))
        least = self._constant("rerankd_least", np.float32(_MIN_SCALE))
        row = self._constant("rerankd_row", np.array([-1], dtype=np.int64))
        rows = self._constant(f"rerankd_rows_of_{width}", np.array([-1, width], dtype=np.int64))
        middle = helper.make_tensor("rerankd_middle", onnx.TensorProto.UINT8, [1], [_ZERO_POINT])
        return [
            helper.make_node("ReduceMax", [name, last_axis], [f"{name}_most"], keepdims=1),
            helper.make_node("ReduceMin", [name, last_axis], [f"{name}_least"], keepdims=1),
            helper.make_node("Mul", [f"{name}_most", step], [f"{name}_step_up"]),
            helper.make_node("Mul", [f"{name}_least", step_down], [f"{name}_step_down"]),
            helper.make_node("Max", [f"{name}_step_up", f"{name}_step_down", least], [f"{name}_scale"]),
            helper.make_node("Reshape", [f"{name}_scale", row], [f"{name}_scales"]),
            helper.make_node("Shape", [f"{name}_scales"], [f"{name}_count"]),
            helper.make_node("ConstantOfShape", [f"{name}_count"], [f"{name}_middles"], value=middle),
            helper.make_node("Reshape", [name, rows], [f"{name}_rows"]),
            helper.make_node(
                "QuantizeLinear",
                [f"{name}_rows", f"{name}_scales", f"{name}_middles"],
                [f"{name}_uint8_rows"],
                axis=0,
            ),
            helper.make_node("Shape", [name], [f"{name}_shape"]),
            helper.make_node("Reshape", [f"{name}_uint8_rows", f"{name}_shape"], [f"{name}_uint8"]),
        ]

    def _table(self, node: onnx.NodeProto, table: FloatArray) -> list[onnx.NodeProto]:
        (name, ids), output = node.input, node.output[0]
        rows, scales = to_int8(table, axis=1)
        return [
            helper.make_node("Gather", [self._constant(f"{name}_rows_int8", rows), ids], [f"{output}_int8"]),
            helper.make_node("Cast", [f"{output}_int8"], [f"{output}_unscaled"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [self._constant(f"{name}_rows_scales", scales), ids], [f"{output}_row_scale"]),
            helper.make_node("Mul", [f"{output}_unscaled", f"{output}_row_scale"], [output]),
        ]

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _own_constant(self, name: str, value: NDArray[np.generic]) -> str:
        """A constant that no other node reads, even if matmuls share weights: ONNX Runtime's exact int8 (docs/adr/0011)
        fails if several nodes read the same one.
        """
        taken = sum(other.partition("#")[0] == name for other in self._constants)
        return self._constant(f"{name}#{taken + 1}" if taken else name, value)

    def _put(self, nodes: list[onnx.NodeProto]) -> None:
        read = {name for node in nodes for name in node.input}
        kept = [tensor for name, tensor in self._weights.items() if name in read]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *self._constants.values()])


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def to_int8(matrix: FloatArray, *, axis: int) -> tuple[NDArray[np.int8], FloatArray]:
    """Quantize with one scale per column (axis 0) or row (axis 1). The scales keep two dimensions."""
    scales = np.maximum(np.abs(matrix).max(axis=axis, keepdims=True) / _INT8_MAX, _MIN_SCALE).astype(np.float32)
    return np.ascontiguousarray(np.rint(matrix / scales).astype(np.int8)), scales
