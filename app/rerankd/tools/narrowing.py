"""Computes of a graph's last layer only the row that its head reads: the first token's, where that is [CLS].

A classifier reads one token's last vector, yet an exported graph computes those of all tokens: in the last layer the
query, the output of attention and the feed-forward network, five sixths of its products. Runtimes do not see it. Here
the selection of the row moves up through the graph, past everything that works on rows one by one, as far as the
keys and values of the last attention, which need every row.
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
# what a size is noted as that the exporter does not know
_UNKNOWN: Final = 0


def keep_first_row(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place, and return how many nodes now work on one row; 0 where its head reads more than that.

    The graph must note the shapes of its inner tensors, as torch's exporter does.
    """
    return _Narrowing(model.graph).apply()


@dataclass(frozen=True, slots=True)
class _Node:
    """A node with the axis on which its outputs shrink to one row, and that of each input that shrinks with them."""

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
        """From the last node to the first: each whose every reader wants one row, if it can compute just that."""
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
            "MatMul": self._product,
            "Reshape": self._reshape,
            "Transpose": lambda node, axis: {0: _permutation(node)[axis]},
        }.get(node.op_type)

    def _elementwise(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        """Inputs that are broadcast along the rows stay as they are."""
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
        """What is computed from the elements of one row; scales and biases have no rows."""
        along = self._axes(node, rank=len(self.shapes[node.output[0]]))
        if along is None or axis in along:
            return None
        return {0: axis, 1: axis} if node.op_type == "GatherElements" else {0: axis}

    def _axes(self, node: onnx.NodeProto, *, rank: int) -> Sequence[int] | None:
        """The axes that a node computes along; None where they are not known, or gone afterwards."""
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

    def _product(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        """A row of a product is that row of its left side times all of its right side."""
        rank = len(self.shapes[node.output[0]])
        left = self.shapes.get(node.input[0], ())
        return {0: axis} if axis == rank - 2 and len(left) == rank else None

    def _reshape(self, node: onnx.NodeProto, axis: int) -> Mapping[int, int] | None:
        """Axes up to the rows' must stay, and those behind it have sizes that are known."""
        before, after = self.shapes.get(node.input[0], ()), self.shapes[node.output[0]]
        stays = before[: axis + 1] == after[: axis + 1] and _UNKNOWN not in after[: axis + 1]
        return {0: axis} if stays and all(isinstance(size, int) and size > 0 for size in after[axis + 1 :]) else None

    def _reshape_to_one_row(self, found: _Node) -> None:
        sizes = [int(size) for size in self.shapes[found.node.output[0]][found.axis + 1 :]]
        shape = [0] * found.axis + [1, *sizes]
        # a size of zero means the input's
        del found.node.attribute[:]
        found.node.input[1] = self._constant(f"{_PREFIX}_{found.node.output[0]}_shape", shape)

    def _first_row(self, name: str, axis: int) -> str:
        """The name of a tensor's first row on an axis, which is kept as an axis of size 1."""
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
        """Each slice directly behind the node that makes what it cuts."""
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
