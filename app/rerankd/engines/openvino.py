"""OpenVINO, on CPU: the same ONNX graphs as the engine `onnx`, with products in int8 and the rest in bfloat16.

A graph that carries its own quantisation per token is handed over in another form: int8 weights and float activations,
which OpenVINO quantises inside its products, for each token by itself. docs/adr/0006 says why.
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
from rerankd.engines.processor import int8_sums_overflow
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding

Precision = Literal["float32", "bfloat16"]

_USUAL_FILES: Final = ("model.int8.onnx", "model.onnx", "onnx/model.onnx", "model.int8-weights.onnx")
_HINT: Final[Mapping[Precision, Type]] = {"float32": Type.f32, "bfloat16": Type.bf16}
_OUTPUT: Final = "logits"
# Kernels are made for every shape, several of each kind, and the last ones of each kind are kept: 5,000 unless told
# otherwise. With lengths rounded up, 128 are those of most usual shapes, and keep the memory within bounds
# (tests/contract/test_memory.py).
_KEPT_KERNELS: Final = 128
# With several streams, OpenVINO 2026.4 multiplies narrower int8 weights wrongly in bfloat16 on processors with AMX.
_NARROWEST_PRODUCT: Final = 64
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
    """A compiled graph with one stream, and one request that is used again and again, for each worker."""

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
                sequence classifier's, or a precision that the processor does not have.
        """
        options, file = check(spec)
        workers = spec.workers or max(1, available_cores() // options.threads)
        # The first array that OpenVINO's Python layer sees starts its NumPy support, once, behind a lock that it takes
        # with the interpreter's held and then gives that one up: two workers that come there first together hang.
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
                # OpenVINO's int8 products of graphs that quantise themselves; those that it quantises are exact anyway.
                "LP_TRANSFORMS_MODE": not int8_sums_overflow(),
                # Two services on one machine would pin their threads to the same cores.
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
            # The request's own memory, which its next inference overwrites.
            return np.array(logits, dtype=np.float32)
        finally:
            self._idle.put(request)

    def _idle_request(self) -> ov.InferRequest:
        """A new one where none is idle: those of passes that hang never come back, and their workers are replaced."""
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
    """The length that sequences are padded to: one of few, and at most 7 tokens, or an eighth, too many."""
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
        widths = _leave_quantising_to_products(model)
        return core.compile_model(model, "CPU", {**properties, "DYNAMIC_QUANTIZATION_GROUP_SIZE": _group(widths)})
    except Exception as error:
        raise ConfigError(f"OpenVINO cannot compile {graph}: {error}") from error


def _shape(port: ov.Output) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in port.get_partial_shape()]


def _output(compiled: ov.CompiledModel) -> ov.ConstOutput:
    """The output with one row a sequence; exporters call it logits."""
    port = next((port for port in compiled.outputs if _OUTPUT in port.get_names()), compiled.outputs[0])
    check_output(port.get_any_name(), _shape(port) if port.get_partial_shape().rank.is_static else None)
    return port


def _group(widths: Sequence[int]) -> int:
    """How many neighbours in a token's vector share a scale: a group must not straddle the end of any vector.

    0, which means that activations stay float, where no product has int8 weights.
    """
    return reduce(gcd, widths, 0)


def _leave_quantising_to_products(model: ov.Model) -> list[int]:
    """Undo a graph's own quantisation of every token around its products with int8 weights; the weights stay.

    The values are the same up to rounding: (x / s) . W * s is x . W. Returns the widths of these products' inputs.

    Raises:
        ValueError: a token's scale is left, which OpenVINO would take for that of a column.
    """
    widths = []
    for product in [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]:
        quantised = _quantised(product.input_value(0))
        if quantised is None:
            continue
        width = product.input_value(1).get_partial_shape()[-2].get_length()
        rescaled = [port.get_node() for port in product.output(0).get_target_inputs()]
        if not all(_multiplies(node, quantised.scales) for node in rescaled):
            continue
        if width < _NARROWEST_PRODUCT:
            _multiply_integers(product, quantised)
            continue
        product.input(0).replace_source_output(quantised.vectors)
        for node in rescaled:
            node.output(0).replace(product.output(0))
        widths.append(width)
    if any(node.get_type_name() == "FakeQuantize" and _has_scales_of_tokens(node) for node in model.get_ordered_ops()):
        raise ValueError('it quantizes tokens in a way that OpenVINO computes wrongly; set engine = "onnx"')
    return widths


class _Quantised(NamedTuple):
    """Vectors that a graph quantises, shape [..., width], and the scale of each, shape [..., 1]."""

    vectors: ov.Output
    scales: ov.Output


def _quantised(value: ov.Output) -> _Quantised | None:
    """What these dequantised integers were rounded from, as `rerankd export` writes it (tools/quantizing.py)."""
    node = value.get_node()
    for kind in ("Multiply", "Subtract", "Convert", "Reshape", "Convert"):
        if node.get_type_name() != kind:
            return None
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize" or not _has_scales_of_tokens(node):
        return None
    rows, scales = node.input_value(0).get_node(), node.input_value(1).get_node().input_value(0).get_node()
    return _Quantised(rows.input_value(0), scales.input_value(0))


def _has_scales_of_tokens(node: ov.Node) -> bool:
    return bool(node.input_value(1).get_partial_shape().is_dynamic)


def _multiplies(node: ov.Node, factor: ov.Output) -> bool:
    return node.get_type_name() == "Multiply" and factor in (node.input_value(0), node.input_value(1))


def _multiply_integers(product: ov.Node, quantised: _Quantised) -> None:
    """Compute a product from the same integers, in float; these sums are exact."""
    columns = product.input_value(1).get_node()
    integers = columns.input_value(0).get_node().input_value(0).get_node().input_value(0).get_node()
    weights = ops.constant(integers.data.astype(np.float32))
    rounded = ops.round(ops.divide(quantised.vectors, quantised.scales), "half_to_even")
    unscaled = ops.matmul(rounded, weights, transpose_a=False, transpose_b=False)
    product.output(0).replace(ops.multiply(unscaled, columns.input_value(1)).output(0))
