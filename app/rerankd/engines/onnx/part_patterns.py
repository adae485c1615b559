"""Patterns of what both kinds of encoder layers consist of, as `rerankd export` writes it (tools/quantizing.py), and
of the embeddings before them.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx

from rerankd.engines.onnx.encoder_names import (
    EmbeddingsNames,
    LinearNames,
    NormNames,
    PaddingBias,
    TableNames,
)
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
from rerankd.engines.onnx.kernel_support import INT8_MATMUL

# Sizes that the kernels support.
MULTIPLE: Final = 64
HEAD_SIZES: Final = (32, 64)


def linear(name: str, source: Tensor, *, biased: bool = True) -> Operator:
    """Quantize each token by its largest magnitude, multiply with int8 weights, and perhaps add a bias."""
    step = float(np.float32(1 / 127))
    tokens, token_scales = Tensor(source.name), Tensor(f"{name}.token_scales")
    quantized = op("QuantizeLinear", op("Reshape", source, ANY), op("Reshape", token_scales, ANY), ANY)
    matmul = op(
        INT8_MATMUL,
        op("Reshape", quantized, ANY),
        Constant(f"{name}.weights"),
        Constant(value=1),
        Constant(f"{name}.scales"),
        Constant(value=128),
        Constant(value=0),
    )
    by_largest = op("Mul", op("ReduceMax", tokens, ANY), Constant(value=step))
    by_smallest = op("Mul", op("ReduceMin", tokens, ANY), Constant(value=-step))
    scaled = op("Mul", matmul, Tensor(token_scales.name, op("Max", by_largest, by_smallest, ANY)))
    return op("Add", scaled, Constant(f"{name}.bias")) if biased else scaled


def norm(name: str, source: Pattern, *, biased: bool = True) -> Operator:
    """Layer normalization, perhaps with a bias."""
    bias = [Constant(f"{name}.bias")] if biased else []
    return op("LayerNormalization", source, Constant(f"{name}.weight"), *bias, axis=(None, -1, 2))


def first_of(axis: int, whole: Pattern | None = None) -> Operator:
    """The first row of a tensor, as the exporter narrows one (tools/narrowing.py)."""
    return op("Slice", whole or Tensor("whole"), Constant(value=[0]), Constant(value=[1]), Constant(value=[axis]))


_TABLE: Final = op(
    "Mul",
    op("Cast", op("Gather", Constant("vectors"), Tensor("indices"))),
    op("Gather", Constant("scales"), Tensor("indices")),
)
# What of the padding every query sees, shape [batch, 1, 1, keys].
SEEN: Final = op("Unsqueeze", op("Cast", Tensor("mask"), to=[onnx.TensorProto.BOOL]), Constant(value=[1, 2]))


def bias_of(seen: Pattern) -> Operator:
    """An attention bias of 0 where a key is seen."""
    return op("Where", seen, Constant(value=0), Constant("masked"))


def padding_bias(graph: Graph, name: str) -> PaddingBias:
    """The bias that masks padding, and nothing else.

    Raises:
        NoMatch: it is another one.
    """
    match = graph.match(bias_of(SEEN), name)
    if match["mask"] != "attention_mask":
        raise NoMatch
    return PaddingBias(graph.number(match["masked"]))


def linear_names(name: str, match: Match) -> LinearNames:
    """Those of a part that was matched."""
    return LinearNames(match[f"{name}.weights"], match[f"{name}.scales"], match.get(f"{name}.bias"))


def norm_names(graph: Graph, name: str, match: Match, output: str) -> NormNames:
    """Those of a part that was matched, and that makes `output`."""
    epsilon = attribute(graph.makers[output], "epsilon")
    return NormNames(
        match[f"{name}.weight"], match.get(f"{name}.bias"), epsilon if isinstance(epsilon, float) else 1e-5
    )


def find_embeddings(graph: Graph, name: str) -> EmbeddingsNames | None:
    """The normalized sum of vectors that makes a tensor, if the kernels can compute it."""
    biased = len(graph.makers[name].input) == len(("states", "weight", "bias")) if name in graph.makers else False
    try:
        match = graph.match(norm("norm", Tensor("sum"), biased=biased), name)
        names = EmbeddingsNames(list(_tables(graph, match["sum"])), norm_names(graph, "norm", match, name))
    except NoMatch:
        return None
    return None if graph.shape(names.norm.weight)[0] % MULTIPLE else names


def _tables(graph: Graph, name: str) -> Iterator[TableNames]:
    """The tables whose vectors are added up."""
    node = graph.makers.get(name)
    if node is not None and node.op_type == "Add":
        for term in node.input:
            yield from _tables(graph, term)
    else:
        match = graph.match(_TABLE, name)
        yield TableNames(match["indices"], match["vectors"], match["scales"])
