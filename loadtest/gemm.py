"""Measures this CPU's int8 matmuls, and the bound that they set: no server can rank faster over int8 weights.

    python -m loadtest.gemm [--rounds 15]

It runs the matmuls of MiniLM-L6's layers alone (512 tokens, widths 384 and 1,536), on one thread, by each runtime, in
billions of multiplications (GMAC) per second of CPU time. The bound is what all cores together could rank if a pair of
the reference workload cost only its matmuls. The last layer's are needed for one token only (tools/narrowing.py).
"""

import argparse
import sys
from collections.abc import Callable
from itertools import islice
from statistics import mean, median
from time import process_time

import numpy as np
import onnxruntime as ort
import openvino as ov
import orjson
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as ops
from rich.console import Console
from rich.table import Table

from rerankd.concurrency.worker import available_cores
from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.engines.onnx.engine import exact_int8
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.tools.benchmark.workload import Shape, Workload

_TOKENS = 512
_WIDTH, _INNER, _LAYERS = 384, 1536, 6
_MATMULS = 12
_MACS = _MATMULS * _TOKENS * _WIDTH * _INNER


def onnx_runtime() -> Callable[[], object]:
    """`MatMulInteger` of unsigned tokens and signed weights; what it writes is kept small by a maximum."""
    shapes = [(_WIDTH, _INNER) if number % 2 == 0 else (_INNER, _WIDTH) for number in range(_MATMULS)]
    nodes, weights = [], []
    for number, shape in enumerate(shapes):
        weights.append(numpy_helper.from_array(_weights(shape), f"weights_{number}"))
        nodes += [
            helper.make_node("MatMulInteger", [f"tokens_{shape[0]}", f"weights_{number}"], [f"result_{number}"]),
            helper.make_node("ReduceMax", [f"result_{number}"], [f"most_{number}"], keepdims=0),
        ]
    graph = helper.make_graph(
        nodes,
        "matmuls",
        [
            helper.make_tensor_value_info(f"tokens_{width}", TensorProto.UINT8, [_TOKENS, width])
            for width in (_WIDTH, _INNER)
        ],
        [helper.make_tensor_value_info(f"most_{number}", TensorProto.INT32, []) for number in range(_MATMULS)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in exact_int8().items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(model.SerializeToString(), options)
    rng = np.random.default_rng(1)
    given = {f"tokens_{width}": rng.integers(0, 255, (_TOKENS, width), dtype=np.uint8) for width in (_WIDTH, _INNER)}
    return lambda: session.run(None, given)


def openvino(*, per_token: bool) -> Callable[[], object]:
    """Float tokens, and int8 weights with a scale a column: quantized inside the matmul, for each token by itself, or
    before it with one scale for all.
    """
    tokens = ops.parameter([-1, _WIDTH], ov.Type.f32, name="tokens")
    state = tokens
    for number in range(_MATMULS):
        shape = (_INNER, _WIDTH) if number % 2 == 0 else (_WIDTH, _INNER)
        scales = ops.constant(np.full((shape[0], 1), 1e-3, dtype=np.float32))
        weights = ops.multiply(ops.convert(ops.constant(_weights(shape)), ov.Type.f32), scales)
        if not per_token:
            low, high = (ops.constant(np.array(bound, dtype=np.float32)) for bound in (-1.28, 1.27))
            state = ops.fake_quantize(state, low, high, low, high, 256)
        state = ops.matmul(state, weights, transpose_a=False, transpose_b=True)
    properties = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _WIDTH if per_token else 0,
    }
    compiled = ov.Core().compile_model(ov.Model([state], [tokens], "matmuls"), "CPU", properties)
    request = compiled.create_infer_request()
    given = np.random.default_rng(1).standard_normal((_TOKENS, _WIDTH)).astype(np.float32)
    return lambda: request.infer({0: given})


def macs_per_pair() -> float:
    """Multiplications in the matmuls with weights of one pair of the reference workload, on average."""
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=SHIPPED_REGISTRY.parent / "minilm-qa"))
    bodies = [orjson.loads(body.content) for body in islice(Workload(Shape((30,)), seed=0), 20)]
    tokens = mean(
        len(encoding.ids)
        for body in bodies
        for encoding in scorer.encode(body["query"], body["documents"], max_document_tokens=None).encodings
    )
    attention, feed_forward = 4 * _WIDTH**2, 2 * _WIDTH * _INNER
    keys_and_values, last_row = 2 * _WIDTH**2, 2 * _WIDTH**2 + feed_forward
    return tokens * ((_LAYERS - 1) * (attention + feed_forward) + keys_and_values) + last_row


def _weights(shape: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    return np.random.default_rng(0).integers(-127, 127, shape, dtype=np.int8)


def _seconds(call: Callable[[], object]) -> float:
    started = process_time()
    call()
    return process_time() - started


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    rounds = options.parse_args().rounds
    variants = {
        "ONNX Runtime, MatMulInteger": onnx_runtime(),
        "OpenVINO, a scale for each token (as the engine does it)": openvino(per_token=True),
        "OpenVINO, one scale for all tokens": openvino(per_token=False),
    }
    for call in variants.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            times[name].append(_seconds(call))
    cost = macs_per_pair()
    table = Table("", "GMAC/s, one core", f"bound, pairs/s on {available_cores()} cores")
    for name, seconds in times.items():
        rate = _MACS / median(seconds)
        table.add_row(name, f"{rate / 1e9:.0f}", f"{available_cores() * rate / cost:.0f}")
    Console().print(table)
    Console().print(
        f"a pair's matmuls: {cost / 1e9:.2f} GMAC; ONNX Runtime {ort.__version__}, OpenVINO {ov.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
