"""Patterns of an ONNX graph: what tensors and operators make a tensor, and how to find them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


class NoMatch(Exception):
    """The graph differs from the pattern."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Any tensor; a name that occurs twice in a pattern means the same tensor. `made_by` is what computes it."""

    name: str = ""
    made_by: "Operator | None" = None


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant; with a `value`, a list of exactly these numbers or an array of nothing but this number."""

    name: str = ""
    value: object = None


@dataclass(frozen=True, slots=True)
class Operator:
    """A node with these inputs, and one of the listed values for each attribute; None means not set."""

    kind: str
    inputs: Sequence["Pattern"]
    attributes: Mapping[str, Collection[object]] = field(default_factory=dict)


Pattern = Tensor | Constant | Operator
Match = Mapping[str, str]
ANY: Final = Tensor()
_COMMUTATIVE: Final = ("Add", "Mul")


def op(kind: str, *inputs: Pattern, **attributes: Collection[object]) -> Operator:
    return Operator(kind, inputs, attributes)


class Graph:
    """A graph's nodes by what they make, and its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = graph.node
        self.inputs = {tensor.name for tensor in graph.input}
        self.makers = {output: node for node in graph.node for output in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}

    def readers(self, name: str) -> Sequence[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return [node for node in self.nodes if name in node.input]

    def match(self, pattern: Pattern, name: str, match: Match | None = None) -> Match:
        """What the names in a pattern stand for, if the pattern makes this tensor."""
        match = match or {}
        if isinstance(pattern, Operator):
            return self._match_operator(pattern, name, match)
        if match.get(pattern.name, name) != name:
            raise NoMatch
        named = {**match, pattern.name: name} if pattern.name else match
        if isinstance(pattern, Constant):
            if pattern.value is not None and not _holds(self.array(name), pattern.value):
                raise NoMatch
            self.shape(name)
            return named
        return self._match_operator(pattern.made_by, name, named) if pattern.made_by else named

    def _match_operator(self, pattern: Operator, name: str, match: Match) -> Match:
        node = self.maker(name, pattern.kind)
        if any(attribute(node, key) not in allowed for key, allowed in pattern.attributes.items()):
            raise NoMatch
        if pattern.kind in _COMMUTATIVE:
            try:
                return self._match_inputs(pattern, node.input, match)
            except NoMatch:
                return self._match_inputs(pattern, node.input[::-1], match)
        return self._match_inputs(pattern, node.input, match)

    def _match_inputs(self, pattern: Operator, inputs: Sequence[str], match: Match) -> Match:
        if len(inputs) != len(pattern.inputs):
            raise NoMatch
        for part, name in zip(pattern.inputs, inputs, strict=True):
            match = self.match(part, name, match)
        return match

    def maker(self, name: str, kind: str) -> onnx.NodeProto:
        node = self.makers.get(name)
        if node is None or node.op_type != kind:
            raise NoMatch
        return node

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.constants:
            raise NoMatch
        return tuple(self.constants[name].dims)

    def array(self, name: str) -> NDArray[Any]:
        if name not in self.constants:
            raise NoMatch
        array: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return array

    def number(self, name: str) -> float:
        array = self.array(name)
        if array.size != 1:
            raise NoMatch
        return float(array.reshape(-1)[0])


def _holds(array: NDArray[Any], value: object) -> bool:
    return array.tolist() == value if isinstance(value, list) else bool((array == value).all())


def attribute(node: onnx.NodeProto, name: str) -> object:
    found = (attribute for attribute in node.attribute if attribute.name == name)
    return next((onnx.helper.get_attribute_value(attribute) for attribute in found), None)
