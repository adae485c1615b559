"""Finds an encoder's embeddings and layers in an int8 graph as `rerankd export` makes it (tools/quantizing.py).

The patterns below are exactly what the kernels compute (engines/onnx/kernels); everything else stays in the graph. The
exporter calls this once and writes down the names (encoder_names.py). Only graphs of rerankd 0.1, which have no names,
are searched when they are loaded.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from rerankd.engines.onnx.encoder_names import (
    EmbeddingsNames,
    EncoderNames,
    LayerNames,
    LinearNames,
    NormNames,
    PaddingBias,
    Positions,
    TableNames,
)
from rerankd.engines.onnx.kernel_support import INT8_MATMUL

# Sizes that the kernels support.
_MULTIPLE: Final = 64
_HEAD_SIZES: Final = (32, 64)


class _NoMatch(Exception):
    """The graph differs from the pattern."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Any tensor; a name that occurs twice in a pattern means the same tensor. `made_by` is what computes it."""

    name: str = ""
    made_by: "_Operator | None" = None


@dataclass(frozen=True, slots=True)
class _Constant:
    """A constant; with a `value`, a list of exactly these numbers or an array of nothing but this number."""

    name: str = ""
    value: object = None


@dataclass(frozen=True, slots=True)
class _Operator:
    """A node with these inputs, and one of the listed values for each attribute; None means not set."""

    kind: str
    inputs: Sequence["_Pattern"]
    attributes: Mapping[str, Collection[object]] = field(default_factory=dict)


_Pattern = _Tensor | _Constant | _Operator
_Match = Mapping[str, str]
_ANY: Final = _Tensor()
_COMMUTATIVE: Final = ("Add", "Mul")


def _op(kind: str, *inputs: _Pattern, **attributes: Collection[object]) -> _Operator:
    return _Operator(kind, inputs, attributes)


def _linear(name: str, source: _Tensor) -> _Operator:
    """Quantize each token by its largest magnitude, multiply with int8 weights, and add the bias."""
    step = float(np.float32(1 / 127))
    tokens, token_scales = _Tensor(source.name), _Tensor(f"{name}.token_scales")
    quantized = _op("QuantizeLinear", _op("Reshape", source, _ANY), _op("Reshape", token_scales, _ANY), _ANY)
    matmul = _op(
        INT8_MATMUL,
        _op("Reshape", quantized, _ANY),
        _Constant(f"{name}.weights"),
        _Constant(value=1),
        _Constant(f"{name}.scales"),
        _Constant(value=128),
        _Constant(value=0),
    )
    by_largest = _op("Mul", _op("ReduceMax", tokens, _ANY), _Constant(value=step))
    by_smallest = _op("Mul", _op("ReduceMin", tokens, _ANY), _Constant(value=-step))
    scaled = _op("Mul", matmul, _Tensor(token_scales.name, _op("Max", by_largest, by_smallest, _ANY)))
    return _op("Add", scaled, _Constant(f"{name}.bias"))


def _norm(name: str, source: _Pattern) -> _Operator:
    return _op("LayerNormalization", source, _Constant(f"{name}.weight"), _Constant(f"{name}.bias"), axis=(None, -1, 2))


def _layer() -> _Operator:
    def head(name: str, source: str, order: list[int]) -> _Operator:
        shaped = _op("Reshape", _linear(name, _Tensor(source)), _Tensor(f"{name}.shape"))
        return _op("Transpose", shaped, perm=[order])

    query_key = _op("MatMul", head("query", "residual", [0, 2, 1, 3]), head("key", "source", [0, 2, 3, 1]))
    scores = _op("Add", _op("Mul", query_key, _Constant("score_scale")), _Tensor("attention_bias"))
    weights = _op("Softmax", scores, axis=(None, -1, 3))
    context = _op("Transpose", _op("MatMul", weights, head("value", "source", [0, 2, 1, 3])), perm=[[0, 2, 1, 3]])
    attention_output = _linear("attention_output", _Tensor("context", _op("Reshape", context, _ANY)))
    states = _Tensor("states", _norm("attention_norm", _op("Add", attention_output, _Tensor("residual"))))
    activations = _Tensor("activations", _op("Gelu", _linear("up", states), approximate=(None, b"none")))
    return _norm("output_norm", _op("Add", _linear("down", activations), _Tensor("states")))


def _first_of(axis: int) -> _Operator:
    return _op("Slice", _Tensor("whole"), _Constant(value=[0]), _Constant(value=[1]), _Constant(value=[axis]))


_LAYER: Final = _layer()
_EMBEDDINGS: Final = _norm("norm", _Tensor("sum"))
_TABLE: Final = _op(
    "Mul",
    _op("Cast", _op("Gather", _Constant("vectors"), _Tensor("indices"))),
    _op("Gather", _Constant("scales"), _Tensor("indices")),
)
_PADDING_BIAS: Final = _op(
    "Where",
    _op("Unsqueeze", _op("Cast", _Tensor("mask"), to=[onnx.TensorProto.BOOL]), _Constant(value=[1, 2])),
    _Constant(value=0),
    _Constant("masked"),
)
_POSITIONS: Final = _op(
    "Slice",
    _Constant("positions"),
    _Constant(value=[0]),
    _op("Shape", _Tensor("ids"), start=[1], end=[2]),
    _Constant(value=[1]),
    _Constant(value=[1]),
)


def find_encoder(graph: onnx.GraphProto) -> EncoderNames | None:
    """The first run of layers that the kernels can compute, and what comes before it; None if there is no layer."""
    finder = _Finder(graph)
    layers = finder.consecutive_layers()
    if not layers:
        return None
    embeddings = finder.embeddings(layers[0].source)
    wanted = [*(table.indices for table in (embeddings.tables if embeddings else ())), layers[0].attention_bias]
    simple = {name: made for name in wanted if (made := finder.simple(name)) is not None}
    return EncoderNames(layers, embeddings, simple)


class _Finder:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._makers = {output: node for node in graph.node for output in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def consecutive_layers(self) -> Sequence[LayerNames]:
        """Layers that follow one another and have the same attention bias."""
        layers = {layer.source: layer for layer in self._layers()}
        outputs = {layer.output for layer in layers.values()}
        following = next((layer for layer in layers.values() if layer.source not in outputs), None)
        found: list[LayerNames] = []
        while following is not None and (not found or following.attention_bias == found[0].attention_bias):
            found.append(following)
            following = layers.get(following.output)
        return found

    def embeddings(self, name: str) -> EmbeddingsNames | None:
        try:
            match = self._match(_EMBEDDINGS, name)
            norm = self._norm_names("norm", match, name)
            tables = list(self._tables(match["sum"]))
        except _NoMatch:
            return None
        return None if self._shape(norm.weight)[0] % _MULTIPLE else EmbeddingsNames(tables, norm)

    def simple(self, name: str) -> PaddingBias | Positions | None:
        """How NumPy makes this tensor, if it can."""
        for find in (self._padding_bias, self._positions):
            try:
                return find(name)
            except _NoMatch:
                continue
        return None

    def _layers(self) -> Iterator[LayerNames]:
        for node in self._graph.node:
            if node.op_type == "LayerNormalization":
                try:
                    yield self._layer(node.output[0])
                except _NoMatch:
                    continue

    def _layer(self, output: str) -> LayerNames:
        match = self._match(_LAYER, output)
        source, bias, residual = match["source"], match["attention_bias"], match["residual"]
        first_row = residual != source
        if first_row and self._match(_first_of(axis=1), residual)["whole"] != source:
            raise _NoMatch
        layer = LayerNames(
            source=source,
            attention_bias=self._bias_of_all_queries(bias) if first_row else bias,
            output=output,
            **{
                name: LinearNames(*(match[f"{name}.{part}"] for part in ("weights", "scales", "bias")))
                for name in ("query", "key", "value", "attention_output", "up", "down")
            },
            attention_norm=self._norm_names("attention_norm", match, match["states"]),
            output_norm=self._norm_names("output_norm", match, output),
            head_size=self._head_size(match["query.shape"]),
            score_scale=self._number(match["score_scale"]),
            first_row=first_row,
        )
        if not self._is_supported(layer):
            raise _NoMatch
        return layer

    def _is_supported(self, layer: LayerNames) -> bool:
        width, inner = self._shape(layer.up.weights)
        square = (width, width)
        parts = (layer.query, layer.key, layer.value, layer.attention_output, layer.up, layer.down)
        return (
            layer.head_size in _HEAD_SIZES
            and width % _MULTIPLE == inner % _MULTIPLE == 0
            and [self._shape(part.weights) for part in parts] == [*[square] * 4, (width, inner), (inner, width)]
        )

    def _bias_of_all_queries(self, bias: str) -> str:
        """A narrowed layer reads the first query's row of the bias; one that is the same for all queries is not cut."""
        is_cut = bias in self._makers and self._makers[bias].op_type == "Slice"
        return self._match(_first_of(axis=2), bias)["whole"] if is_cut else bias

    def _head_size(self, shape: str) -> int:
        """The last size that a Reshape is given: of a constant, or of several tensors put together."""
        sizes = shape if shape in self._constants else self._maker(shape, "Concat").input[-1]
        return int(self._array(sizes)[-1])

    def _tables(self, name: str) -> Iterator[TableNames]:
        """The tables whose vectors are added up."""
        node = self._makers.get(name)
        if node is not None and node.op_type == "Add":
            for term in node.input:
                yield from self._tables(term)
        else:
            match = self._match(_TABLE, name)
            yield TableNames(match["indices"], match["vectors"], match["scales"])

    def _padding_bias(self, name: str) -> PaddingBias:
        match = self._match(_PADDING_BIAS, name)
        if match["mask"] != "attention_mask":
            raise _NoMatch
        return PaddingBias(self._number(match["masked"]))

    def _positions(self, name: str) -> Positions:
        match = self._match(_POSITIONS, name)
        shape = self._shape(match["positions"])
        if match["ids"] not in {tensor.name for tensor in self._graph.input} or len(shape) != 2 or shape[0] != 1:
            raise _NoMatch
        return Positions(match["positions"])

    def _norm_names(self, name: str, match: _Match, output: str) -> NormNames:
        epsilon = _attribute(self._makers[output], "epsilon")
        return NormNames(
            match[f"{name}.weight"], match[f"{name}.bias"], epsilon if isinstance(epsilon, float) else 1e-5
        )

    def _match(self, pattern: _Pattern, name: str, match: _Match | None = None) -> _Match:
        """What the names in a pattern stand for, if the pattern makes this tensor."""
        match = match or {}
        if isinstance(pattern, _Operator):
            return self._match_operator(pattern, name, match)
        if match.get(pattern.name, name) != name:
            raise _NoMatch
        named = {**match, pattern.name: name} if pattern.name else match
        if isinstance(pattern, _Constant):
            if pattern.value is not None and not _holds(self._array(name), pattern.value):
                raise _NoMatch
            self._shape(name)
            return named
        return self._match_operator(pattern.made_by, name, named) if pattern.made_by else named

    def _match_operator(self, pattern: _Operator, name: str, match: _Match) -> _Match:
        node = self._maker(name, pattern.kind)
        if any(_attribute(node, key) not in allowed for key, allowed in pattern.attributes.items()):
            raise _NoMatch
        if pattern.kind in _COMMUTATIVE:
            try:
                return self._match_inputs(pattern, node.input, match)
            except _NoMatch:
                return self._match_inputs(pattern, node.input[::-1], match)
        return self._match_inputs(pattern, node.input, match)

    def _match_inputs(self, pattern: _Operator, inputs: Sequence[str], match: _Match) -> _Match:
        if len(inputs) != len(pattern.inputs):
            raise _NoMatch
        for part, name in zip(pattern.inputs, inputs, strict=True):
            match = self._match(part, name, match)
        return match

    def _maker(self, name: str, kind: str) -> onnx.NodeProto:
        node = self._makers.get(name)
        if node is None or node.op_type != kind:
            raise _NoMatch
        return node

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._constants:
            raise _NoMatch
        return tuple(self._constants[name].dims)

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._constants:
            raise _NoMatch
        array: NDArray[Any] = numpy_helper.to_array(self._constants[name])
        return array

    def _number(self, name: str) -> float:
        array = self._array(name)
        if array.size != 1:
            raise _NoMatch
        return float(array.reshape(-1)[0])


def _holds(array: NDArray[Any], value: object) -> bool:
    return array.tolist() == value if isinstance(value, list) else bool((array == value).all())


def _attribute(node: onnx.NodeProto, name: str) -> object:
    found = (attribute for attribute in node.attribute if attribute.name == name)
    return next((onnx.helper.get_attribute_value(attribute) for attribute in found), None)
