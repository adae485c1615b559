"""Makes a graph compute only one row of its last layer: that of [CLS], if the head reads no other.

An exported graph computes the last vector of every token. In the last layer the query, the output projection and the
feed-forward network, five sixths of its matmuls, are needed for one row only. Runtimes do not notice. So we move the
selection of the row up through the graph, past everything that works on single rows, to the keys and values of the last
attention, which need all rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int | str, ...]

# fmt: off
_ELEMENTWISE: Final = frozenset([
    "Abs", "Add", "Cast", "Clip", "Div", "Equal", "Erf", "Exp", "Gelu", "Identity", "Mul", "Neg", "Not", "Pow",
    "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where",
])
_REDUCTIONS: Final = frozenset(["ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"])
_ALONG_AN_AXIS: Final = _REDUCTIONS | {
    "GatherElements", "LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax", "Split",
}
# fmt: on
_PREFIX: Final = "rerankd_first"
# the size of an axis that the exporter does not know
_UNKNOWN: Final = 0


def keep_first_row(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place, and return how many nodes now work on one row; 0 if its head reads more rows.

    The graph must contain the shapes of its inner tensors, as torch's exporter writes them.
    """
    return _Narrowing(model.graph).apply()


@dataclass(frozen=True, slots=True)
class _Node:
    """A node, the axis along which its outputs shrink to one row, and that axis for each input that shrinks too."""

    node: onnx.NodeProto
    axis: int
    inputs: Mapping[int, int]


@dataclass(slots=True)
class _Narrowing:
    graph: onnx.GraphProto
    shapes: dict[str, Shape] = field(init=False)
    constants: dict[str, onnx.TensorProto] = field(init=False)
    made: list[onnx.NodeProto] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        infos = [*self.graph.value_info, *self.graph.input, *self.graph.output]
        self.shapes = {info.name: _shape(info) for info in infos}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.shapes |= {name: tuple(tensor.dims) for name, tensor in self.constants.items()}

    def apply(self) -> int:
        readers = [node for node in self.graph.node if self._reads_first_row(node)]
        narrow = self._narrow(readers)
        if not narrow:
            return 0
        shrunk = {output: found.axis for found in narrow.values() for output in found.node.output}
        wanted = [(node, {0: 1}) for node in readers] + [(found.node, found.inputs) for found in narrow.values()]
        for node, inputs in wanted:
            for position, axis in inputs.items():
                if node.input[position] not in shrunk:
                    node.input[position] = self._first_row(node.input[position], axis)
        for found in narrow.values():
            if found.node.op_type == "Reshape":
                self._reshape_to_one_row(found)
        self._note_shapes(shrunk)
        self._put_in_order()
        return len(narrow)

    def _reads_first_row(self, node: onnx.NodeProto) -> bool:
        """Whether a node is `states[:, 0]`, of [batch, tokens, size]."""
        if node.op_type != "Gather" or len(self.shapes.get(node.input[0], ())) != 3:
            return False
        chosen = self.constants.get(node.input[1])
        first = chosen is not None and numpy_helper.to_array(chosen).tolist() in (0, [0])
        return first and _attribute(node, "axis", 0) == 1

    def _narrow(self, readers: Sequence[onnx.NodeProto]) -> dict[str, _Node]:
        """All nodes, from last to first, that can compute one row and whose readers all read one row."""
        wishes: dict[str, list[int | None]] = {output.name: [None] for output in self.graph.output}
        narrow: dict[str, _Node] = {}
        reading = {id(node): _Node(node, 0, {0: 1}) for node in readers}
        for node in reversed(self.graph.node):
            found = reading.get(id(node)) or self._narrowed(node, wishes)
            if found is not None and id(node) not in reading:
                narrow[node.output[0]] = found
            for position, name in enumerate(node.input):
                wishes.setdefault(name, []).append(found.inputs.get(position) if found else None)
        return narrow

    def _narrowed(self, node: onnx.NodeProto, wishes: Mapping[str, Sequence[int | None]]) -> _Node | None:
        wished = {axis for output in node.output if output for axis in wishes.get(output, ())}
        axis = wished.pop() if len(wished) == 1 else None
        rule = self._rule(node)
        if axis is None or rule is None or not all(self.shapes.get(name) for name in node.output):
            return None
        inputs = rule(node, axis)
        return None if inputs is None else _Node(node, axis, inputs)

    def _rule(self, node: onnx.NodeProto) -> Callable[[onnx.NodeProto, int], Mapping[int, int] | None] | None:
        if node.op_type in _ELEMENTWISE:
            return self._elementwise
        if node.op_type in _ALONG_AN_AXIS:
            return self._along_an_axis
        return {
            "Concat": self._concat,
            "MatMul": self._matmul,
            "Reshape": self._reshape,
            "Transpose": lambda node, axis: {0: _permutation(node)[axis]},
        }.get(node.op_type)

    def _elementwise(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        """Inputs that are broadcast along the rows do not shrink."""
        rank, inputs = len(self.shapes[node.output[0]]), {}
        for position, name in enumerate(node.input):
            if name and name not in self.shapes:
                return None
            shape = self.shapes[name] if name else ()
            own = axis - (rank - len(shape))
            if own >= 0 and shape[own] == _UNKNOWN:
                return None
            if own >= 0 and shape[own] != 1:
                inputs[position] = own
        return inputs

    def _along_an_axis(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        """Operators along another axis than the rows'. Scales and biases do not shrink."""
        along = self._axes(node, rank=len(self.shapes[node.output[0]]))
        if along is None or axis in along:
            return None
        return {0: axis, 1: axis} if node.op_type == "GatherElements" else {0: axis}

    def _axes(self, node: onnx.NodeProto, *, rank: int) -> Sequence[int] | None:
        """The axes that a node computes along; None if unknown or removed by it."""
        if node.op_type not in _REDUCTIONS:
            axis = _attribute(node, "axis", 0 if node.op_type == "Split" else -1) % rank
            return range(axis, rank) if node.op_type.endswith("Normalization") else [axis]
        axes = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        if axes is None or not _attribute(node, "keepdims", 1):
            return None
        return [int(axis) % rank for axis in numpy_helper.to_array(axes)]

    def _concat(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        if axis == _attribute(node, "axis", 0) % len(self.shapes[node.output[0]]):
            return None
        return dict.fromkeys(range(len(node.input)), axis)

    def _matmul(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        """A row of a matmul is that row of the left side times the whole right side."""
        rank = len(self.shapes[node.output[0]])
        left = self.shapes.get(node.input[0], ())
        return {0: axis} if axis == rank - 2 and len(left) == rank else None

    def _reshape(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        """The axes up to the rows' must not change, and later axes must have known sizes."""
        before, after = self.shapes.get(node.input[0], ()), self.shapes[node.output[0]]
        stays = before[: axis + 1] == after[: axis + 1] and _UNKNOWN not in after[: axis + 1]
        return {0: axis} if stays and all(isinstance(size, int) and size > 0 for size in after[axis + 1 :]) else None

    def _reshape_to_one_row(self, found: _Node) -> None:
        sizes = [int(size) for size in self.shapes[found.node.output[0]][found.axis + 1 :]]
        shape = [0] * found.axis + [1, *sizes]
        # zero means the size of the input
        del found.node.attribute[:]
        found.node.input[1] = self._constant(f"{_PREFIX}_{found.node.output[0]}_shape", shape)

    def _first_row(self, name: str, axis: int) -> str:
        """Slice a tensor's first row along an axis, and keep the axis with size 1."""
        row = f"{_PREFIX}_{axis}_{name}"
        if row not in self.shapes:
            bounds = [self._constant(f"{_PREFIX}_{number}", [number]) for number in (0, 1, axis)]
            self.made.append(helper.make_node("Slice", [name, *bounds], [row]))
            shape = self.shapes[name]
            self.shapes[row] = (*shape[:axis], 1, *shape[axis + 1 :])
            info = next((info for info in self.graph.value_info if info.name == name), None)
            if info is not None:
                noted = self.graph.value_info.add()
                noted.CopyFrom(info)
                noted.name = row
                _set_to_one(noted, axis)
        return row

    def _constant(self, name: str, values: Sequence[int]) -> str:
        if name not in self.constants:
            tensor = numpy_helper.from_array(np.array(values, dtype=np.int64), name)
            self.constants[name] = tensor
            self.graph.initializer.append(tensor)
        return name

    def _note_shapes(self, shrunk: Mapping[str, int]) -> None:
        for info in self.graph.value_info:
            if info.name in shrunk:
                _set_to_one(info, shrunk[info.name])

    def _put_in_order(self) -> None:
        """Put each slice directly after the node that computes its input."""
        slices: dict[str, list[onnx.NodeProto]] = {}
        for node in self.made:
            slices.setdefault(node.input[0], []).append(node)
        known = [name for name in slices if all(name not in node.output for node in self.graph.node)]
        nodes = [made for name in known for made in slices[name]]
        for node in self.graph.node:
            nodes.append(node)
            nodes += [made for output in node.output for made in slices.get(output, ())]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)


def _shape(info: onnx.ValueInfoProto) -> Shape:
    return tuple(dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim)


def _set_to_one(info: onnx.ValueInfoProto, axis: int) -> None:
    info.type.tensor_type.shape.dim[axis].Clear()
    info.type.tensor_type.shape.dim[axis].dim_value = 1


def _permutation(node: onnx.NodeProto) -> Sequence[int]:
    return next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
