"""One row of the last layer instead of all: the same outputs, and only where the head reads no more than that row."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import parser, shape_inference
from onnxruntime import InferenceSession, SessionOptions

from rerankd.tools.narrowing import keep_first_row

BATCH = 3

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
graph (float[batch, tokens, 4] x, float[tokens, 4] positions) => (float[batch, n] y)
<int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{-1}}, int64[1] rows = {{1}}, int64[1] end = {{9}},
 float[4, 4] w = {{0.3, -0.2, 0.5, 0.1, 0.7, -0.9, 0.2, 0.4, -0.1, 0.6, -0.3, 0.8, 0.2, -0.4, 0.9, -0.5}},
 float[4] b = {{0.1, -0.2, 0.3, 0.4}}, int64[4] heads = {{0, 0, 2, 2}}, int64[3] whole = {{0, 0, 4}},
 int64[2] flat = {{-1, 4}}, int64[3] back = {{3, -1, 4}}, int64[2] halves = {{2, 2}}, float half = {{0.5}}>
{{
{body}
}}
"""

FEED_FORWARD = """
 a = MatMul(x, w)
 c = Add(a, b)
 g = Gelu(c)
 r = Add(g, x)
 states = LayerNormalization<axis = -1>(r, b, b)
"""

ATTENTION = """
 q0 = MatMul(x, w)
 q1 = Reshape(q0, heads)
 q = Transpose<perm = [0, 2, 1, 3]>(q1)
 k1 = Reshape(x, heads)
 k = Transpose<perm = [0, 2, 3, 1]>(k1)
 v = Transpose<perm = [0, 2, 1, 3]>(k1)
 s0 = MatMul(q, k)
 s1 = Mul(s0, half)
 s = Softmax<axis = -1>(s1)
 o0 = MatMul(s, v)
 o1 = Transpose<perm = [0, 2, 1, 3]>(o0)
 o = Reshape(o1, whole)
 r = Add(o, x)
 states = LayerNormalization<axis = -1>(r, b, b)
"""

# what is computed before the head reads one row, and how many of these nodes need no other row
BODIES = {
    "a feed-forward network": (FEED_FORWARD, 5),
    "attention, but for keys and values": (ATTENTION, 11),
    "values that are broadcast over the batch": (" p = Add(x, positions)\n states = Mul(p, half)", 2),
    "a norm that is written out": (
        " m = ReduceMean(x, last)\n d = Sub(x, m)\n p = Mul(d, d)\n e = ReduceMean(p, last)\n states = Div(d, e)",
        5,
    ),
    "a gate": (" g, h = Split<axis = -1>(x, halves)\n k = Mul(g, h)\n states = Concat<axis = -1>(k, g)", 3),
    "a choice in each row": (
        " i = Cast<to = 7>(x)\n j = Clip(i, zero, one)\n t = GatherElements<axis = 2>(x, j)\n states = Add(t, x)",
        4,
    ),
    "a mean over rows": (" m = ReduceMean(x, rows)\n states = Sub(x, m)", 1),
    "a mean over everything": (" m = ReduceMean<keepdims = 0>(x)\n states = Sub(x, m)", 1),
    "a softmax over rows": (" states = Softmax<axis = 1>(x)", 0),
    "one half of a gate that is needed whole": (
        " g, h = Split<axis = -1>(x, halves)\n m = ReduceMean(h, rows)\n states = Mul(g, m)",
        1,
    ),
    "rows behind one another": (" states = Concat<axis = 1>(x, x)", 0),
    "rows cut off": (" states = Slice(x, rows, end, rows)", 0),
    "rows mixed with the batch": (" f = Reshape(x, flat)\n m = MatMul(f, w)\n states = Reshape(m, back)", 0),
}

OTHER_READERS = {
    "another row": "y = Gather<axis = 1>(states, one)",
    "the first sequence": "y = Gather<axis = 0>(states, zero)",
    "the mean of all rows": "y = ReduceMean<keepdims = 0>(states, rows)",
    "one row and all of them": (
        "c = Gather<axis = 1>(states, zero)\n m = ReduceMean<keepdims = 0>(states, rows)\n y = Add(c, m)"
    ),
}


def model(body: str, *, reader: str = "y = Gather<axis = 1>(states, zero)") -> onnx.ModelProto:
    return shape_inference.infer_shapes(parser.parse_model(GRAPH.format(body=f"{body}\n {reader}")))


def outputs(graph: onnx.ModelProto, *, tokens: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(11)
    shapes = {"x": (BATCH, tokens, 4), "positions": (tokens, 4)}
    given = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    options = SessionOptions()
    options.log_severity_level = 3  # it warns of the constants that a body leaves unused
    session = InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [found] = session.run(None, given)
    return np.asarray(found)


@pytest.mark.parametrize(("body", "count"), BODIES.values(), ids=list(BODIES))
@pytest.mark.parametrize("tokens", [2, 5])
def test_nodes_that_work_on_rows_one_by_one_compute_one(body: str, count: int, tokens: int) -> None:
    graph = model(body)
    before = outputs(graph, tokens=tokens)
    assert keep_first_row(graph) == count
    onnx.checker.check_model(graph, full_check=True)
    np.testing.assert_allclose(outputs(graph, tokens=tokens), before, atol=1e-6)


@pytest.mark.parametrize("reader", OTHER_READERS.values(), ids=list(OTHER_READERS))
def test_a_head_that_reads_other_rows_changes_nothing(reader: str) -> None:
    graph = model(FEED_FORWARD, reader=reader)
    before = graph.SerializeToString()
    assert keep_first_row(graph) == 0
    assert graph.SerializeToString() == before


def test_what_has_no_noted_shape_is_computed_whole() -> None:
    graph = model(FEED_FORWARD)
    unknown = [info for info in graph.graph.value_info if info.name == "c"]
    graph.graph.value_info.remove(unknown[0])
    before = outputs(graph, tokens=5)
    assert keep_first_row(graph) == 2
    np.testing.assert_allclose(outputs(graph, tokens=5), before, atol=1e-6)


def test_the_noted_shapes_are_those_of_one_row() -> None:
    graph = model(ATTENTION)
    keep_first_row(graph)
    noted = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in graph.graph.value_info
    }
    assert noted["q"] == ["batch", 2, 1, 2]
    assert noted["s"] == ["batch", 2, 1, "tokens"]
    assert noted["v"] == ["batch", 2, "tokens", 2]
    assert noted["states"] == ["batch", 1, 4]
