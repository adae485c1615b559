"""OpenVINO, on CPU: the same ONNX graphs as the engine `onnx`, with int8 matmuls and the rest in bfloat16.

A graph that quantizes each token by itself is rewritten: int8 weights and float activations, which OpenVINO quantizes
per token inside its matmuls. docs/adr/0006 says why.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from math import gcd
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops
from pydantic import BaseModel, ConfigDict, Field

from rerankd.concurrency.worker import available_cores
from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits, EngineSpec, check_inputs, check_output, find_graph, pad
from rerankd.engines.cpu import int8_sums_overflow
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding

Precision = Literal["float32", "bfloat16"]

_USUAL_FILES: Final = ("model.int8.onnx", "model.onnx", "onnx/model.onnx", "model.int8-weights.onnx")
_HINT: Final[Mapping[Precision, Type]] = {"float32": Type.f32, "bfloat16": Type.bf16}
_OUTPUT: Final = "logits"
# OpenVINO compiles kernels for every shape and keeps the last 5,000 of each kind by default. Since lengths are rounded
# up, 128 cover most shapes and bound the memory (tests/contract/test_memory.py).
_KEPT_KERNELS: Final = 128
# With several streams, OpenVINO 2026.4 computes narrower int8 matmuls wrongly in bfloat16 on CPUs with AMX.
_MIN_MATMUL_WIDTH: Final = 64
_STEPS: Final = ((128, 8), (256, 16), (2**31, 32))


class OpenVinoOptions(BaseModel):
    """`[model.engine_options]` of the engine `openvino`."""

    model_config = ConfigDict(extra="forbid")

    file: str | None = Field(default=None, description="The graph, relative to the model's folder.")
    threads: int = Field(default=1, ge=1, description="Threads per forward pass.")
    precision: Precision | None = Field(
        default=None,
        description="Precision of everything that is not int8. Default: bfloat16 where the CPU supports it.",
    )
    kept_kernels: int = Field(
        default=_KEPT_KERNELS,
        ge=1,
        description="Compiled kernels of each kind, for as many shapes, that stay in memory.",
    )


class OpenVinoEngine:
    """A compiled graph with one stream and one reusable request per worker."""

    def __init__(self, compiled: ov.CompiledModel, *, name: str, pad_id: int, workers: int) -> None:
        self._pad_id = pad_id
        self._takes = {port.get_any_name(): port.get_element_type() for port in compiled.inputs}
        self._output = _output(compiled)
        self._compiled = compiled
        self._idle: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(compiled.create_infer_request())
        self.workers = workers
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> "OpenVinoEngine":
        """Compile the model's graph.

        Raises:
            ConfigError: no graph in the folder, one that OpenVINO cannot compile, inputs or outputs that are not a
                sequence classifier's, or a precision that the CPU does not support.
        """
        options, file = check(spec)
        workers = spec.workers or max(1, available_cores() // options.threads)
        # The first array initializes OpenVINO's NumPy support, under a lock that deadlocks with the GIL when two
        # workers get there at the same time. So do it here, once.
        ov.Tensor(np.zeros(1, dtype=np.int64))
        core = ov.Core()
        precision = _precision(core, options.precision)
        compiled = _compile(
            core,
            spec.folder / file,
            {
                "NUM_STREAMS": workers,
                "INFERENCE_NUM_THREADS": workers * options.threads,
                "INFERENCE_PRECISION_HINT": _HINT[precision],
                "CPU_RUNTIME_CACHE_CAPACITY": options.kept_kernels,
                # int8 matmuls of graphs with their own quantization; those that OpenVINO quantizes are always exact.
                "LP_TRANSFORMS_MODE": not int8_sums_overflow(),
                # Two services on one machine would pin threads to the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        return cls(compiled, name=f"openvino/cpu/{precision}/{file}", pad_id=spec.pad_id, workers=workers)

    @property
    def preferred_batch(self) -> BatchLimits:
        return BatchLimits(tokens=768, pairs=64, rounded_length=rounded_length)

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score sequences; the result has shape [sequences, outputs of the head], float32."""
        longest = max(len(encoding.ids) for encoding in encodings)
        batch = pad(encodings, pad_id=self._pad_id, length=rounded_length(longest))
        given = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
        }
        return self._infer({name: _as(given[name], kind) for name, kind in self._takes.items()})

    def _infer(self, inputs: Mapping[str, IntArray]) -> FloatArray:
        request = self._idle_request()
        try:
            logits = request.infer(dict(inputs), share_inputs=True)[self._output]
            # A copy, because the request's next inference overwrites its memory.
            return np.array(logits, dtype=np.float32)
        finally:
            self._idle.put(request)

    def _idle_request(self) -> ov.InferRequest:
        """An idle request, or a new one: requests of passes that hang are never returned."""
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._compiled.create_infer_request()


def check(spec: EngineSpec) -> tuple[OpenVinoOptions, str]:
    """The options, and which graph of the folder is served.

    Raises:
        ConfigError: an option or the graph cannot be used, as far as that can be known before it is read.
    """
    options = read_options(spec.options, OpenVinoOptions, of="engine 'openvino'")
    _precision(ov.Core(), options.precision)
    return options, find_graph(spec.folder, file=options.file, usual=_USUAL_FILES)


def rounded_length(length: int) -> int:
    """Round a length up to one of a few, by at most 7 tokens or an eighth."""
    step = next(step for limit, step in _STEPS if length <= limit)
    return -(-length // step) * step


def _as(array: IntArray, kind: Type) -> IntArray:
    return array.astype(np.int32) if kind == Type.i32 else array


def _precision(core: ov.Core, wanted: Precision | None) -> Precision:
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if wanted == "bfloat16" and not has_bfloat16:
        raise ConfigError('this CPU does not support bfloat16; set precision = "float32", or leave it out')
    return wanted or ("bfloat16" if has_bfloat16 else "float32")


def _compile(core: ov.Core, graph: Path, properties: Mapping[str, Any]) -> ov.CompiledModel:
    try:
        model = core.read_model(graph)
    except Exception as error:
        raise ConfigError(f"OpenVINO cannot open {graph}: {error}") from error
    check_inputs({port.get_any_name(): _shape(port) for port in model.inputs})
    try:
        widths = _remove_quantization(model)
        return core.compile_model(model, "CPU", {**properties, "DYNAMIC_QUANTIZATION_GROUP_SIZE": _group(widths)})
    except Exception as error:
        raise ConfigError(f"OpenVINO cannot compile {graph}: {error}") from error


def _shape(port: ov.Output) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in port.get_partial_shape()]


def _output(compiled: ov.CompiledModel) -> ov.ConstOutput:
    """The output with one row per sequence, usually called logits."""
    port = next((port for port in compiled.outputs if _OUTPUT in port.get_names()), compiled.outputs[0])
    check_output(port.get_any_name(), _shape(port) if port.get_partial_shape().rank.is_static else None)
    return port


def _group(widths: Sequence[int]) -> int:
    """How many numbers of a token's vector share a scale: a divisor of all widths, so that no group crosses tokens.

    0 means that activations stay float: no matmul has int8 weights.
    """
    return reduce(gcd, widths, 0)


def _remove_quantization(model: ov.Model) -> list[int]:
    """Remove a graph's own quantization of tokens around its int8 matmuls; the weights stay int8.

    The values are the same up to rounding, since (x / s) W s = x W. Returns the input widths of these matmuls.

    Raises:
        ValueError: a scale per token is left, which OpenVINO would apply per column.
    """
    widths = []
    for matmul in [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]:
        quantized = _quantized(matmul.input_value(0))
        if quantized is None:
            continue
        width = matmul.input_value(1).get_partial_shape()[-2].get_length()
        rescaled = [port.get_node() for port in matmul.output(0).get_target_inputs()]
        if not all(_multiplies(node, quantized.scales) for node in rescaled):
            continue
        if width < _MIN_MATMUL_WIDTH:
            _multiply_integers(matmul, quantized)
            continue
        matmul.input(0).replace_source_output(quantized.vectors)
        for node in rescaled:
            node.output(0).replace(matmul.output(0))
        widths.append(width)
    if any(node.get_type_name() == "FakeQuantize" and _has_scales_of_tokens(node) for node in model.get_ordered_ops()):
        raise ValueError('it quantizes tokens in a way that OpenVINO computes wrongly; set engine = "onnx"')
    return widths


class _Quantized(NamedTuple):
    """Vectors that a graph quantizes, shape [..., width], and their scales, shape [..., 1]."""

    vectors: ov.Output
    scales: ov.Output


def _quantized(value: ov.Output) -> _Quantized | None:
    """The vectors that these dequantized integers come from, as `rerankd export` writes it (tools/quantizing.py)."""
    node = value.get_node()
    for kind in ("Multiply", "Subtract", "Convert", "Reshape", "Convert"):
        if node.get_type_name() != kind:
            return None
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize" or not _has_scales_of_tokens(node):
        return None
    rows, scales = node.input_value(0).get_node(), node.input_value(1).get_node().input_value(0).get_node()
    return _Quantized(rows.input_value(0), scales.input_value(0))


def _has_scales_of_tokens(node: ov.Node) -> bool:
    return bool(node.input_value(1).get_partial_shape().is_dynamic)


def _multiplies(node: ov.Node, factor: ov.Output) -> bool:
    return node.get_type_name() == "Multiply" and factor in (node.input_value(0), node.input_value(1))


def _multiply_integers(matmul: ov.Node, quantized: _Quantized) -> None:
    """Compute a matmul of the same integers in float, where the sums are exact."""
    columns = matmul.input_value(1).get_node()
    integers = columns.input_value(0).get_node().input_value(0).get_node().input_value(0).get_node()
    weights = ops.constant(integers.data.astype(np.float32))
    rounded = ops.round(ops.divide(quantized.vectors, quantized.scales), "half_to_even")
    unscaled = ops.matmul(rounded, weights, transpose_a=False, transpose_b=False)
    matmul.output(0).replace(ops.multiply(unscaled, columns.input_value(1)).output(0))
