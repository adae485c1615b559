"""Finds embeddings and layers of an encoder of BERT's kind in an int8 graph as `rerankd export` writes it
(app/rerankd/tools/quantizing.py).

What is found is exactly what the kernels compute (engines/onnx/kernels): attention over all tokens, with a bias on its
scores, and a feed-forward network with GELU, each with its residual and a normalisation after it; and before them the
normalised sum of rows of tables. Anything else stays in the graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from rerankd.domain import FloatArray, IntArray
from rerankd.engines.onnx.kernel_support import INT8_PRODUCT

# The product of rounded activations and int8 weights, with which a layer is recognised.

# What the kernels are made for.
_MULTIPLE: Final = 64
_HEAD_SIZES: Final = (32, 64)

_Found = TypeVar("_Found")


class _Unlike(Exception):
    """The graph goes on in another way than a layer does."""


@dataclass(frozen=True, slots=True)
class LinearPart:
    """A product with int8 weights of shape [in, out], a scale and a bias for each column."""

    source: str
    output: str
    weights: NDArray[np.int8]
    scales: FloatArray
    bias: FloatArray


@dataclass(frozen=True, slots=True)
class NormalisationPart:
    weight: FloatArray
    bias: FloatArray
    epsilon: float


@dataclass(frozen=True, slots=True)
class LayerPart:
    """A layer: the names of what goes in, of attention's bias and of what comes out, and its numbers. With `first_row`
    only the first token goes on (app/rerankd/tools/narrowing.py).
    """

    source: str
    bias: str
    output: str
    query: LinearPart
    key: LinearPart
    value: LinearPart
    attention_output: LinearPart
    up: LinearPart
    down: LinearPart
    after_attention: NormalisationPart
    after_feed_forward: NormalisationPart
    heads: int
    score_scale: float
    first_row: bool


@dataclass(frozen=True, slots=True)
class TablePart:
    """A table of int8 vectors, shape [rows, width], with a scale for each, and the name of the rows that are read."""

    indices: str
    vectors: NDArray[np.int8]
    scales: FloatArray


@dataclass(frozen=True, slots=True)
class EmbeddingsPart:
    """The normalised sum of a vector of each table."""

    tables: Sequence[TablePart]
    normalisation: NormalisationPart


@dataclass(frozen=True, slots=True)
class PaddingBias:
    """What is added to the scores of all queries alike, shape [batch, 1, 1, keys]: 0 where the attention mask has
    another number than 0, else `hidden`.
    """

    hidden: float


@dataclass(frozen=True, slots=True)
class FirstPlaces:
    """The first columns of a constant, shape [1, longest], as many as a sequence has tokens."""

    places: IntArray


def find_embeddings(graph: onnx.GraphProto, name: str) -> EmbeddingsPart | None:
    """What makes this tensor, if it is the normalised sum of int8 vectors."""
    try:
        return _Finder(graph).embeddings(name)
    except (_Unlike, ValueError):
        return None


def find_simple(graph: onnx.GraphProto, name: str) -> PaddingBias | FirstPlaces | None:
    """How this tensor comes from the graph's inputs, where that is one of the two usual ways."""
    finder = _Finder(graph)
    for find in (finder.padding_bias, finder.first_places):
        try:
            return find(name)
        except (_Unlike, ValueError):
            continue
    return None


def find_layers(graph: onnx.GraphProto) -> Sequence[LayerPart]:
    """The first run of layers that follow one another with the same bias on attention; empty where there is none."""
    finder = _Finder(graph)
    layers = {layer.source: layer for layer in finder.layers()}
    outputs = {layer.output for layer in layers.values()}
    first = next((layer for layer in layers.values() if layer.source not in outputs), None)
    found: list[LayerPart] = []
    while first is not None and (not found or first.bias == found[0].bias):
        found.append(first)
        first = layers.get(first.output)
    return found


class _Finder:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {output: node for node in graph.node for output in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._inputs = {tensor.name for tensor in graph.input}
        self._gelus = [node for node in graph.node if node.op_type == "Gelu"]

    def layers(self) -> Iterator[LayerPart]:
        for gelu in self._gelus:
            try:
                yield self._layer(gelu)
            except (_Unlike, ValueError):  # the latter where a node has another number of inputs
                continue

    def embeddings(self, name: str) -> EmbeddingsPart:
        node = self._maker(name, "LayerNormalization")
        normalisation = self._normalisation(node)
        if len(normalisation.weight) % _MULTIPLE:
            raise _Unlike
        return EmbeddingsPart(list(self._tables(node.input[0])), normalisation)

    def padding_bias(self, name: str) -> PaddingBias:
        mask, seen, hidden = self._maker(name, "Where").input
        source, axes = self._maker(mask, "Unsqueeze").input
        cast = self._maker(source, "Cast")
        as_truth = _attribute(cast, "to", 0) == onnx.TensorProto.BOOL
        if cast.input[0] != "attention_mask" or not as_truth or self._array(axes).tolist() != [1, 2]:
            raise _Unlike
        if self._number(seen) != 0:
            raise _Unlike
        return PaddingBias(self._number(hidden))

    def first_places(self, name: str) -> FirstPlaces:
        constant, start, end, axis, step = self._maker(name, "Slice").input
        length = self._maker(end, "Shape")
        of_columns = (_attribute(length, "start", 0), _attribute(length, "end", 0)) == (1, 2)
        if length.input[0] not in self._inputs or not of_columns:
            raise _Unlike
        if [self._array(one).tolist() for one in (start, axis, step)] != [[0], [1], [1]]:
            raise _Unlike
        places = self._array(constant)
        if places.ndim != 2 or len(places) != 1:
            raise _Unlike
        return FirstPlaces(places)

    def _tables(self, name: str) -> Iterator[TablePart]:
        """Those whose vectors are added up."""
        node = self._makers.get(name)
        if node is not None and node.op_type == "Add":
            for term in node.input:
                yield from self._tables(term)
            return
        unscaled, scale = self._maker(name, "Mul").input
        vectors, indices = self._maker(self._maker(unscaled, "Cast").input[0], "Gather").input
        scales, same = self._maker(scale, "Gather").input
        if same != indices:
            raise _Unlike
        yield TablePart(indices, self._array(vectors), self._array(scales).reshape(-1))

    def _layer(self, gelu: onnx.NodeProto) -> LayerPart:
        """The layer around the activation of its feed-forward network."""
        if _attribute(gelu, "approximate", b"none") != b"none":
            raise _Unlike
        up = self._linear(gelu.input[0])
        down = self._linear(_only(self._readers_past_rounding(gelu.output[0])))
        after_attention = self._maker(up.source, "LayerNormalization")
        after_feed_forward = self._reader(self._reader(down.output, "Add").output[0], "LayerNormalization")
        self._adds(after_feed_forward, down.output, up.source)
        attention_output, residual = self._attention_output(after_attention)
        query, key, value, bias, size, scale = self._attention(attention_output.source)
        first_row = residual != key.source
        if first_row and self._first_of(residual, axis=1) != key.source:
            raise _Unlike
        layer = LayerPart(
            source=key.source,
            bias=self._of_all_queries(bias) if first_row else bias,
            output=after_feed_forward.output[0],
            query=query,
            key=key,
            value=value,
            attention_output=attention_output,
            up=up,
            down=down,
            after_attention=self._normalisation(after_attention),
            after_feed_forward=self._normalisation(after_feed_forward),
            heads=len(query.bias) // size,
            score_scale=scale,
            first_row=first_row,
        )
        if (query.source, value.source) != (residual, key.source) or not _suits_kernels(layer, size):
            raise _Unlike
        return layer

    def _of_all_queries(self, bias: str) -> str:
        """The bias that a first query's is cut from; one that is the same for every query is not cut."""
        cut = bias in self._makers and self._makers[bias].op_type == "Slice"
        return self._first_of(bias, axis=2) if cut else bias

    def _first_of(self, name: str, *, axis: int) -> str:
        """What the first rows along an axis are cut from, where these are meant by a name."""
        source, *where = self._maker(name, "Slice").input
        if [self._array(one).tolist() for one in where] != [[0], [1], [axis]]:
            raise _Unlike
        return str(source)

    def _readers_past_rounding(self, name: str) -> list[str]:
        """The outputs of the products that read a tensor in its rounded form."""
        return [
            self._reader(self._reader(product.output[0], "Mul").output[0], "Add").output[0]
            for product in self._products(name)
        ]

    def _products(self, name: str) -> list[onnx.NodeProto]:
        rows = [node for node in self._readers.get(name, []) if node.op_type == "Reshape"]
        rounded = [self._reader(node.output[0], "QuantizeLinear") for node in rows]
        integers = [self._reader(node.output[0], "Reshape").output[0] for node in rounded]
        return [product for name in integers for product in self._readers[name]]

    def _linear(self, output: str) -> LinearPart:
        """The product, with its bias, that makes this tensor."""
        scaled, bias = self._with_constant(self._maker(output, "Add"))
        scaling = self._maker(scaled, "Mul")
        product = self._maker(scaling.input[0], INT8_PRODUCT)
        integers, weights, one, scales, middle, zeros = product.input
        rounded = self._maker(self._maker(integers, "Reshape").input[0], "QuantizeLinear")
        token_scales = self._maker(rounded.input[1], "Reshape").input[0]
        source = self._maker(rounded.input[0], "Reshape").input[0]
        if token_scales != scaling.input[1] or not self._is_largest_magnitude(token_scales, of=source):
            raise _Unlike
        if self._number(one) != 1 or self._number(middle) != 128 or self._array(zeros).any():
            raise _Unlike
        return LinearPart(source, output, self._array(weights), self._array(scales), self._array(bias))

    def _is_largest_magnitude(self, scales: str, *, of: str) -> bool:
        """Whether these are the scales with which each vector reaches from -127 to 127."""
        up, down, _ = self._maker(scales, "Max").input
        most, least = (self._maker(step, "Mul") for step in (up, down))
        sources = (
            self._maker(most.input[0], "ReduceMax").input[0],
            self._maker(least.input[0], "ReduceMin").input[0],
        )
        step = float(np.float32(1 / 127))
        return sources == (of, of) and self._number(most.input[1]) == step == -self._number(least.input[1])

    def _attention_output(self, normalisation: onnx.NodeProto) -> tuple[LinearPart, str]:
        """The product after attention, and the residual that is added to it: what the layer starts from."""
        first, second = self._maker(normalisation.input[0], "Add").input
        for product, residual in ((first, second), (second, first)):
            try:
                return self._linear(product), residual
            except (_Unlike, ValueError):
                continue
        raise _Unlike

    def _attention(self, context: str) -> tuple[LinearPart, LinearPart, LinearPart, str, int, float]:
        """Query, key and value; the name of the bias; the size of a head; the factor of the scores."""
        heads = self._transposed(self._maker(context, "Reshape").input[0], [0, 2, 1, 3])
        weighted = self._maker(heads, "MatMul")
        softmax = self._maker(weighted.input[0], "Softmax")
        if _attribute(softmax, "axis", -1) not in (-1, 3):
            raise _Unlike
        scaled, bias = self._maker(softmax.input[0], "Add").input
        scores, factor = self._with_constant(self._maker(scaled, "Mul"))
        product = self._maker(scores, "MatMul")
        query, size = self._head_of(product.input[0], [0, 2, 1, 3])
        key, _ = self._head_of(product.input[1], [0, 2, 3, 1])
        value, _ = self._head_of(weighted.input[1], [0, 2, 1, 3])
        return query, key, value, bias, size, self._number(factor)

    def _head_of(self, name: str, order: Sequence[int]) -> tuple[LinearPart, int]:
        """The product whose result is divided into heads, and their size."""
        divided = self._maker(self._transposed(name, order), "Reshape")
        return self._linear(divided.input[0]), self._last_size(divided.input[1])

    def _last_size(self, shape: str) -> int:
        if shape in self._constants:
            return int(self._array(shape)[-1])
        return int(self._array(self._maker(shape, "Concat").input[-1])[-1])

    def _transposed(self, name: str, order: Sequence[int]) -> str:
        node = self._maker(name, "Transpose")
        if list(_attribute(node, "perm", [])) != list(order):
            raise _Unlike
        return str(node.input[0])

    def _normalisation(self, node: onnx.NodeProto) -> NormalisationPart:
        if _attribute(node, "axis", -1) not in (-1, 2) or len(node.input) != 3:
            raise _Unlike
        weight, bias = (self._array(name) for name in node.input[1:])
        return NormalisationPart(weight, bias, _attribute(node, "epsilon", 1e-5))

    def _adds(self, normalisation: onnx.NodeProto, *names: str) -> None:
        if set(self._maker(normalisation.input[0], "Add").input) != set(names):
            raise _Unlike

    def _with_constant(self, node: onnx.NodeProto) -> tuple[str, str]:
        """The two inputs of a node, the constant one last."""
        first, second = node.input
        if second in self._constants:
            return first, second
        if first in self._constants:
            return second, first
        raise _Unlike

    def _maker(self, name: str, kind: str) -> onnx.NodeProto:
        node = self._makers.get(name)
        if node is None or node.op_type != kind:
            raise _Unlike
        return node

    def _reader(self, name: str, kind: str) -> onnx.NodeProto:
        return _only([node for node in self._readers.get(name, []) if node.op_type == kind])

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._constants:
            raise _Unlike
        array: NDArray[Any] = numpy_helper.to_array(self._constants[name])
        return array

    def _number(self, name: str) -> float:
        array = self._array(name)
        if array.size != 1:
            raise _Unlike
        return float(array.reshape(-1)[0])


def _suits_kernels(layer: LayerPart, size: int) -> bool:
    width, inner = len(layer.query.bias), len(layer.up.bias)
    square, up, down = (width, width), (width, inner), (inner, width)
    parts = (layer.query, layer.key, layer.value, layer.attention_output, layer.up, layer.down)
    return (
        size in _HEAD_SIZES
        and width % _MULTIPLE == inner % _MULTIPLE == 0
        and [part.weights.shape for part in parts] == [square, square, square, square, up, down]
    )


def _only(found: Sequence[_Found]) -> _Found:
    if len(found) != 1:
        raise _Unlike
    return found[0]


def _attribute(node: onnx.NodeProto, name: str, default: _Found) -> _Found:
    found = (attribute for attribute in node.attribute if attribute.name == name)
    return next((onnx.helper.get_attribute_value(attribute) for attribute in found), default)
