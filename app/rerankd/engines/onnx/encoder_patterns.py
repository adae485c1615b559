"""Finds an encoder's embeddings and layers in an int8 graph as `rerankd export` makes it (tools/quantizing.py).

The patterns here and in rotary_patterns.py are exactly what the kernels compute (engines/onnx/kernels); everything else
stays in the graph. The exporter calls this once and writes down the names (encoder_names.py). Only graphs of rerankd
0.1, which have no names, are searched when they are loaded.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import onnx

from rerankd.engines.onnx.encoder_names import (
    AnyLayerNames,
    EncoderNames,
    LayerNames,
    PaddingBias,
    Positions,
)
from rerankd.engines.onnx.graph_patterns import ANY, Constant, Graph, NoMatch, Operator, Tensor, op
from rerankd.engines.onnx.part_patterns import (
    HEAD_SIZES,
    MULTIPLE,
    find_embeddings,
    first_of,
    linear,
    linear_names,
    norm,
    norm_names,
    padding_bias,
)
from rerankd.engines.onnx.rotary_patterns import find_rotary_layers


def _layer() -> Operator:
    def head(name: str, source: str, order: list[int]) -> Operator:
        shaped = op("Reshape", linear(name, Tensor(source)), Tensor(f"{name}.shape"))
        return op("Transpose", shaped, perm=[order])

    query_key = op("MatMul", head("query", "residual", [0, 2, 1, 3]), head("key", "source", [0, 2, 3, 1]))
    scores = op("Add", op("Mul", query_key, Constant("score_scale")), Tensor("attention_bias"))
    weights = op("Softmax", scores, axis=(None, -1, 3))
    context = op("Transpose", op("MatMul", weights, head("value", "source", [0, 2, 1, 3])), perm=[[0, 2, 1, 3]])
    attention_output = linear("attention_output", Tensor("context", op("Reshape", context, ANY)))
    states = Tensor("states", norm("attention_norm", op("Add", attention_output, Tensor("residual"))))
    activations = Tensor("activations", op("Gelu", linear("up", states), approximate=(None, b"none")))
    return norm("output_norm", op("Add", linear("down", activations), Tensor("states")))


_LAYER: Final = _layer()
_POSITIONS: Final = op(
    "Slice",
    Constant("positions"),
    Constant(value=[0]),
    op("Shape", Tensor("ids"), start=[1], end=[2]),
    Constant(value=[1]),
    Constant(value=[1]),
)


def find_encoder(graph: onnx.GraphProto) -> EncoderNames | None:
    """The first run of layers that the kernels can compute, and what comes before it; None if there is no layer."""
    known = Graph(graph)
    layers: Sequence[AnyLayerNames] = _consecutive_layers(known) or find_rotary_layers(known)
    if not layers:
        return None
    embeddings = find_embeddings(known, layers[0].source)
    wanted = [*(table.indices for table in (embeddings.tables if embeddings else ())), layers[0].attention_bias]
    simple = {name: made for name in wanted if (made := _simple(known, name)) is not None}
    return EncoderNames(layers, embeddings, simple)


def _consecutive_layers(graph: Graph) -> Sequence[LayerNames]:
    """Layers that follow one another and have the same attention bias."""
    layers = {layer.source: layer for layer in _layers(graph)}
    outputs = {layer.output for layer in layers.values()}
    following = next((layer for layer in layers.values() if layer.source not in outputs), None)
    found: list[LayerNames] = []
    while following is not None and (not found or following.attention_bias == found[0].attention_bias):
        found.append(following)
        following = layers.get(following.output)
    return found


def _simple(graph: Graph, name: str) -> PaddingBias | Positions | None:
    """How NumPy makes this tensor, if it can."""
    for find in (padding_bias, _positions):
        try:
            return find(graph, name)
        except NoMatch:
            continue
    return None


def _layers(graph: Graph) -> Iterator[LayerNames]:
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            try:
                yield _layer_names(graph, node.output[0])
            except NoMatch:
                continue


def _layer_names(graph: Graph, output: str) -> LayerNames:
    match = graph.match(_LAYER, output)
    source, bias, residual = match["source"], match["attention_bias"], match["residual"]
    first_row = residual != source
    if first_row and graph.match(first_of(axis=1), residual)["whole"] != source:
        raise NoMatch
    layer = LayerNames(
        source=source,
        attention_bias=_bias_of_all_queries(graph, bias) if first_row else bias,
        output=output,
        **{name: linear_names(name, match) for name in ("query", "key", "value", "attention_output", "up", "down")},
        attention_norm=norm_names(graph, "attention_norm", match, match["states"]),
        output_norm=norm_names(graph, "output_norm", match, output),
        head_size=_head_size(graph, match["query.shape"]),
        score_scale=graph.number(match["score_scale"]),
        first_row=first_row,
    )
    if not _is_supported(graph, layer):
        raise NoMatch
    return layer


def _is_supported(graph: Graph, layer: LayerNames) -> bool:
    width, inner = graph.shape(layer.up.weights)
    square = (width, width)
    parts = (layer.query, layer.key, layer.value, layer.attention_output, layer.up, layer.down)
    return (
        layer.head_size in HEAD_SIZES
        and width % MULTIPLE == inner % MULTIPLE == 0
        and [graph.shape(part.weights) for part in parts] == [*[square] * 4, (width, inner), (inner, width)]
    )


def _bias_of_all_queries(graph: Graph, bias: str) -> str:
    """A narrowed layer reads the first query's row of the bias; one that is the same for all queries is not cut."""
    is_cut = bias in graph.makers and graph.makers[bias].op_type == "Slice"
    return graph.match(first_of(axis=2), bias)["whole"] if is_cut else bias


def _head_size(graph: Graph, shape: str) -> int:
    """The last size that a Reshape is given: of a constant, or of several tensors put together."""
    sizes = shape if shape in graph.constants else graph.maker(shape, "Concat").input[-1]
    return int(graph.array(sizes)[-1])


def _positions(graph: Graph, name: str) -> Positions:
    match = graph.match(_POSITIONS, name)
    shape = graph.shape(match["positions"])
    if match["ids"] not in graph.inputs or len(shape) != 2 or shape[0] != 1:
        raise NoMatch
    return Positions(match["positions"])
