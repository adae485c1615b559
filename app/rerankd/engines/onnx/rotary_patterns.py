"""Finds layers of ModernBERT's kind in an int8 graph as `rerankd export` makes it: pre-norm without biases, rotary
positions, gated GELU, attention to all tokens or within a window.

Such layers hand on two tensors, the residual and what the next norm makes of it. So all of them are taken, or none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from rerankd.engines.onnx.encoder_names import PaddingBias, RotaryLayerNames
from rerankd.engines.onnx.graph_patterns import (
    ANY,
    Constant,
    Graph,
    Match,
    NoMatch,
    Operator,
    Pattern,
    Tensor,
    attribute,
    op,
)
from rerankd.engines.onnx.part_patterns import (
    HEAD_SIZES,
    MULTIPLE,
    SEEN,
    bias_of,
    first_of,
    linear,
    linear_names,
    norm,
    norm_names,
    padding_bias,
)

_HEADS_FIRST: Final = [0, 2, 1, 3]
# 0, 1, 2, ... for each token of the padded batch.
_PLACES: Final = op("Range", Constant(value=0), Tensor("length"), Constant(value=1))
_LENGTH: Final = op("Squeeze", op("Shape", Tensor("input"), start=[1], end=[2]))
_WITHIN_WINDOW: Final = op(
    "LessOrEqual",
    op("Abs", op("Sub", op("Unsqueeze", _PLACES, Constant(value=[1])), op("Unsqueeze", _PLACES, Constant(value=[0])))),
    Constant("window"),
)


def _angle(function: str) -> Operator:
    """Of each token's place and each frequency, twice side by side."""
    places = op(
        "Cast", op("Unsqueeze", op("Unsqueeze", _PLACES, ANY), Constant(value=[2])), to=[onnx.TensorProto.FLOAT]
    )
    angles = Tensor("angles", op("Mul", places, Constant("frequencies")))
    twice = op("Concat", angles, Tensor("angles"), axis=[-1, 2])
    return op("Unsqueeze", op(function, twice), Constant(value=[1]))


def _layer(*, first_row: bool) -> Operator:
    def narrowed(pattern: Pattern) -> Pattern:
        return first_of(2, pattern) if first_row else pattern

    def part(number: int) -> Operator:
        """Query, key or value of all heads."""
        shaped = Tensor(
            "parts", op("Reshape", linear("query_key_value", Tensor("source"), biased=False), Tensor("shape"))
        )
        chosen = op("Slice", shaped, Constant(value=[number]), Constant(value=[number + 1]), Constant(value=[-3]))
        return op("Transpose", op("Squeeze", chosen, Constant(value=[-3])), perm=[_HEADS_FIRST])

    def turned(name: str, number: int, narrow: Callable[[Pattern], Pattern]) -> Operator:
        def some(first: Constant, end: Constant) -> Pattern:
            return narrow(op("Slice", Tensor(name), first, end, Constant(value=[3]), Constant(value=[1])))

        one, other = some(Constant(value=[0]), Constant("half")), some(Constant("half"), Constant("end"))
        by_cosine = op("Mul", narrow(Tensor(name, part(number))), narrow(_angle("Cos")))
        by_sine = op("Mul", op("Concat", op("Neg", other), one, axis=[-1, 3]), narrow(_angle("Sin")))
        return op("Add", by_cosine, by_sine)

    keys = op("Transpose", turned("keys", 1, lambda pattern: pattern), perm=[[0, 1, 3, 2]])
    query_key = op("MatMul", turned("queries", 0, narrowed), keys)
    scores = op("Add", op("Mul", query_key, Constant("score_scale")), Tensor("attention_bias"))
    context = op("MatMul", op("Softmax", scores, axis=(None, -1, 3)), part(2))
    rows = Tensor("context", op("Reshape", op("Transpose", context, perm=[_HEADS_FIRST]), ANY))
    attended = op("Add", linear("attention_output", rows, biased=False), Tensor("residual"))
    states = Tensor("states", norm("attention_norm", Tensor("attended", attended), biased=False))
    halves = op("Split", linear("up", states, biased=False), axis=[-1, 2])
    activated = op("Gelu", Tensor("first_half", halves), approximate=(None, b"none"))
    activations = Tensor("activations", op("Mul", activated, Tensor("second_half")))
    summed = op("Add", linear("down", activations, biased=False), Tensor("attended"))
    return norm("output_norm", Tensor("sum", summed), biased=False)


_LAYERS: Final[Mapping[bool, Operator]] = {first_row: _layer(first_row=first_row) for first_row in (False, True)}


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer, the residuals before and after it, and the padding that its bias masks."""

    names: RotaryLayerNames
    residual: str
    next_residual: str
    padding: PaddingBias


def find_rotary_layers(graph: Graph) -> Sequence[RotaryLayerNames]:
    """All layers, or none if the kernels cannot compute one of them."""
    layers = {layer.names.source: layer for layer in _layers(graph)}
    following = next((layer for layer in layers.values() if layer.residual == layer.names.source), None)
    found: list[_Layer] = []
    while following is not None:
        found.append(following)
        following = layers.get(following.names.output)
        if following is not None and following.residual != found[-1].next_residual:
            return []
    # What follows the last layer may read its normalized states only.
    if not found or len(found) != len(layers) or len(graph.readers(found[-1].next_residual)) > 1:
        return []
    return _with_one_bias(found)


def _with_one_bias(layers: Sequence[_Layer]) -> Sequence[RotaryLayerNames]:
    """The layers with the bias of those that have no window; none if layers see different padding."""
    plain = {layer.names.attention_bias for layer in layers if layer.names.window is None}
    if len(plain) != 1 or len({layer.padding for layer in layers}) != 1:
        return []
    return [layer.names.with_bias(*plain) for layer in layers]


def _layers(graph: Graph) -> Iterator[_Layer]:
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            for first_row, pattern in _LAYERS.items():
                try:
                    yield _checked(graph, graph.match(pattern, node.output[0]), node.output[0], first_row=first_row)
                except NoMatch:
                    continue


def _checked(graph: Graph, match: Match, output: str, *, first_row: bool) -> _Layer:
    residual = graph.match(first_of(1), match["residual"])["whole"] if first_row else match["residual"]
    bias = match["attention_bias"]
    if first_row and graph.makers[bias].op_type == "Slice":
        bias = graph.match(first_of(2), bias)["whole"]
    padding, window = _padding_and_window(graph, bias)
    names = RotaryLayerNames(
        source=match["source"],
        attention_bias=bias,
        output=output,
        **{name: linear_names(name, match) for name in ("query_key_value", "attention_output", "up", "down")},
        attention_norm=norm_names(graph, "attention_norm", match, match["states"]),
        output_norm=norm_names(graph, "output_norm", match, output),
        head_size=_head_size(graph, match),
        score_scale=graph.number(match["score_scale"]),
        frequencies=match["frequencies"],
        window=window,
        first_row=first_row,
    )
    _check_places(graph, match)
    _check_halves(graph, match)
    _check_sizes(graph, names)
    return _Layer(names, residual, match["sum"], padding)


def _padding_and_window(graph: Graph, bias: str) -> tuple[PaddingBias, int | None]:
    """What a bias masks."""
    try:
        return padding_bias(graph, bias), None
    except NoMatch:
        match = graph.match(bias_of(op("And", SEEN, _WITHIN_WINDOW)), bias)
    _check_places(graph, match)
    if match["mask"] != "attention_mask":
        raise NoMatch
    return PaddingBias(graph.number(match["masked"])), int(graph.number(match["window"]))


def _check_places(graph: Graph, match: Match) -> None:
    """There must be as many places as tokens in the padded batch."""
    if graph.match(_LENGTH, match["length"])["input"] not in graph.inputs:
        raise NoMatch


def _head_size(graph: Graph, match: Match) -> int:
    """That of a shape [batch, tokens, 3, heads, size], which the halves of rotary positions must fit."""
    parts, _, size = (graph.array(name) for name in graph.maker(match["shape"], "Concat").input[-3:])
    half, end = (int(graph.array(match[name])[0]) for name in ("half", "end"))
    if parts.tolist() != [3] or 2 * half != size[0] or end < size[0]:
        raise NoMatch
    return int(size[0])


def _check_halves(graph: Graph, match: Match) -> None:
    """Of the feed-forward network's inner activations."""
    node = graph.maker(match["first_half"], "Split")
    halves = [match["first_half"], match["second_half"]]
    if list(node.output) != halves or len(node.input) != 1 or attribute(node, "num_outputs") != len(halves):
        raise NoMatch


def _check_sizes(graph: Graph, names: RotaryLayerNames) -> None:
    inner, width = graph.shape(names.down.weights)
    parts = (names.query_key_value, names.attention_output, names.up, names.down)
    wanted = [(width, 3 * width), (width, width), (width, 2 * inner), (inner, width)]
    if (
        names.head_size not in HEAD_SIZES
        or width % MULTIPLE
        or inner % MULTIPLE
        or [graph.shape(part.weights) for part in parts] != wanted
        or graph.shape(names.frequencies)[-1:] != (names.head_size // 2,)
        or graph.array(names.frequencies).size != names.head_size // 2
    ):
        raise NoMatch
