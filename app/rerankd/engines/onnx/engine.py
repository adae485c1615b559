"""ONNX Runtime, on CPU, CUDA or TensorRT."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rerankd.concurrency.worker import available_cores
from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import (
    BatchLimits,
    EngineSpec,
    PaddedBatch,
    check_inputs,
    check_output,
    find_graph,
    pad,
    pooled_mask,
)
from rerankd.engines.cpu import int8_sums_overflow
from rerankd.engines.onnx.kernel_support import NO_INT8_LAYERS, mentions_int8_matmuls, why_not_compiled, why_not_usable
from rerankd.engines.pooling import Pooler
from rerankd.errors import ConfigError, OutOfMemory
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.modules import read_embedding_head
from rerankd.tasks.embed import Embed
from rerankd.tasks.encoding import Encoding

if TYPE_CHECKING:
    from rerankd.engines.onnx.fused import FusedSession

logger = logging.getLogger(__name__)

Device = Literal["cpu", "cuda", "tensorrt"]

_DEVICE: Final = re.compile(r"cpu|(cuda|tensorrt)(:\d+)?")
_PROVIDERS: Final[Mapping[Device, Sequence[str]]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
_OPTIMIZATION: Final = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
# Where exporters put the graph, best first. int8 is fast on CPUs only, float16 on GPUs only.
_PLAIN: Final = ("model.onnx", "onnx/model.onnx")
_USUAL_FILES: Final[Mapping[Device, Sequence[str]]] = {
    "cpu": ["model.int8.onnx", *_PLAIN, "model.int8-weights.onnx"],
    "cuda": ["model.float16.onnx", *_PLAIN],
    "tensorrt": ["model.float16.onnx", *_PLAIN],
}
_OUTPUT: Final = "logits"
# Outputs of embedding models, by their exporters' names: a text's vector with all of its modules, and the tokens'.
_POOLED_OUTPUT: Final = "sentence_embedding"
_TOKEN_OUTPUTS: Final = ("token_embeddings", "last_hidden_state")
# On a CPU small batches stay in the cache and finish soon; a GPU needs large ones.
_SMALL: Final = BatchLimits(tokens=512, pairs=64)
_LARGE: Final = BatchLimits(tokens=32_768, pairs=256)
# On the CPU, bias and GELU are faster as two steps than fused (docs/adr/0017).
_SLOW_FUSIONS: Final[Mapping[Device, Sequence[str]]] = {"cpu": ["BiasGeluFusion"], "cuda": [], "tensorrt": []}
# ONNX Runtime's error when it cannot use exact int8, because several nodes share weights.
_SHARED_WEIGHTS: Final = "Attempt to replace the existing tensor"
_OUT_OF_MEMORY: Final = ("out of memory", "failed to allocate memory", "bad_alloc", "cudaerrormemoryallocation")
# The metadata key of a language model's graph: the token ids of its outputs, as JSON.
OUTPUT_TOKENS: Final = "rerankd_output_tokens"


def exact_int8() -> dict[str, str]:
    """Session settings that make ONNX Runtime's int8 matmuls exact on this CPU (docs/adr/0011). None where they are
    exact without: the setting would make them several times slower.
    """
    return {"session.x64quantprecision": "1"} if int8_sums_overflow() else {}


class OnnxOptions(BaseModel):
    """`[model.engine_options]` of the engine `onnx`."""

    model_config = ConfigDict(extra="forbid")

    file: str | None = Field(default=None, description="The graph, relative to the model's folder.")
    device: str = Field(
        default="cpu",
        description='"cpu", "cuda", "cuda:N", "tensorrt" or "tensorrt:N".',
    )
    threads: int = Field(default=1, ge=1, description="Threads per forward pass on the CPU.")
    graph_optimization: Literal["all", "extended", "basic", "none"] = "all"
    io_binding: bool | None = Field(default=None, description="Bind inputs and outputs; default: on a GPU.")
    fused: bool | None = Field(
        default=None,
        description="Compute an encoder's int8 layers by rerankd's own kernels, on CPUs with AVX2, or Arm's dot "
        "product, and with one thread per pass. Default: where that is possible; true: refuse to load where it is not.",
    )
    provider_options: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError(
                'must be "cpu", "cuda", "tensorrt", or one of several GPUs, as "cuda:1" or "tensorrt:1", '
                f"not {value!r:.60}"
            )
        return value

    @model_validator(mode="after")
    def _providers_have_options(self) -> "OnnxOptions":
        if self.provider_options and self.kind == "cpu":
            raise ValueError(
                f"provider_options ({', '.join(self.provider_options)}) are for the devices cuda and tensorrt, and the "
                "device is cpu; leave them out"
            )
        return self

    @property
    def kind(self) -> Device:
        """The device without its number."""
        return cast("Device", self.device.partition(":")[0])

    @property
    def number(self) -> int:
        """The number of the GPU."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True, slots=True)
class _Output:
    """What is read of a graph's outputs: the first `count` numbers of one, None: all. A `pooler` pools those of tokens
    before.
    """

    name: str
    count: int | None
    pooler: Pooler | None = None


class OnnxEngine:
    """One session that several threads share, since ONNX Runtime sessions are thread-safe. So is `FusedSession`, which
    can replace it.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        name: str,
        pad_id: int,
        workers: int,
        preferred_batch: BatchLimits,
        io_binding: bool,
        output: "_Output",
    ) -> None:
        self._session = session
        self._pad_id = pad_id
        self._io_binding = io_binding
        self._inputs = {node.name: node.type for node in session.get_inputs()}
        self._output = output.name
        self._outputs = output.count
        self._pooler = output.pooler
        self.workers = workers
        self.preferred_batch = preferred_batch
        self.name = name
        self.remark = ""

    @classmethod
    def load(cls, spec: EngineSpec) -> "OnnxEngine":
        """Open the model's graph.

        Raises:
            ConfigError: no graph in the folder, one that ONNX Runtime cannot open, inputs or outputs that are not
                those of the task, or a device that this installation does not have.
        """
        options, file = check(spec)
        on_cpu = options.kind == "cpu"
        embeds = isinstance(spec.task, Embed)
        fused, reason = (None, "") if embeds else _open_fused(spec.folder / file, options)
        session, exact = (fused, True) if fused else _open(spec.folder / file, options)
        check_inputs({node.name: node.shape for node in session.get_inputs()})
        _check_output_tokens(session, spec.output_tokens)
        engine = cls(
            session,
            name=f"onnx/{options.kind}/{file}" + (f"/{fused.name}" if fused else "" if exact else "/inexact"),
            pad_id=spec.pad_id,
            workers=spec.workers or (max(1, available_cores() // options.threads) if on_cpu else 1),
            preferred_batch=_preferred_batch(fused) if on_cpu else _LARGE,
            io_binding=not on_cpu if options.io_binding is None else options.io_binding,
            output=_vectors_of(session, spec) if embeds else _logits_of(session, spec),
        )
        engine.remark = reason and f"without our own kernels: {reason}"
        return engine

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score or embed sequences; the result has shape [sequences, outputs], float32.

        Raises:
            OutOfMemory: the batch does not fit the device's memory.
        """
        batch = pad(encodings, pad_id=self._pad_id)
        inputs = self._arrays(batch)
        try:
            logits = self._run_bound(inputs) if self._io_binding else self._run(inputs)
        except Exception as error:
            # ONNX Runtime has no exception type for this.
            if any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
                raise OutOfMemory(str(error)) from error
            raise
        if self._pooler is not None:
            mask = batch.attention_mask
            logits = self._pooler.pool(logits, mask if self._pooler.pools_prompt else pooled_mask(encodings, mask))
        return logits[:, : self._outputs].astype(np.float32, copy=False)

    def _arrays(self, batch: PaddedBatch) -> dict[str, IntArray]:
        given = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
        }
        return {
            name: given[name].astype(np.int32) if kind == "tensor(int32)" else given[name]
            for name, kind in self._inputs.items()
        }

    def _run(self, inputs: Mapping[str, IntArray]) -> FloatArray:
        logits: FloatArray = self._session.run([self._output], dict(inputs))[0]
        return logits

    def _run_bound(self, inputs: Mapping[str, IntArray]) -> FloatArray:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output(self._output, "cpu")
        self._session.run_with_iobinding(binding)
        logits: FloatArray = binding.copy_outputs_to_cpu()[0]
        return logits


def check(spec: EngineSpec) -> tuple[OnnxOptions, str]:
    """The options, and the name of the graph to serve.

    Raises:
        ConfigError: an option or the graph's file cannot be used. The graph itself is not read.
    """
    options = read_options(spec.options, OnnxOptions, of="engine 'onnx'")
    missing = set(_PROVIDERS[options.kind][:1]) - set(ort.get_available_providers())
    if missing:
        raise ConfigError(
            f"device {options.device!r} needs {', '.join(missing)}, which this onnxruntime does not have; "
            "uninstall it, then run: pip install 'rerankd[gpu]' (in a checkout: make clean install EXTRAS=gpu); "
            'or set device = "cpu"'
        )
    return options, find_graph(spec.folder, file=options.file, usual=_USUAL_FILES[options.kind])


def _preferred_batch(fused: "FusedSession | None") -> BatchLimits:
    """On the CPU. Our kernels work in blocks that stay in the cache, so larger batches only save overhead."""
    return replace(_SMALL, stretch=1.5, padded=fused.padded) if fused else _SMALL


def _open_fused(graph: Path, options: OnnxOptions) -> "tuple[FusedSession | None, str]":
    """A session that uses our kernels, or the reason why that is impossible; neither with `fused = false`.

    Raises:
        ConfigError: `fused = true`, and it is impossible.
    """
    if options.fused is False:
        return None, ""
    try:
        return _fused(graph, options), ""
    except Exception as error:
        # Whatever it is, ONNX Runtime can do without, or reports better what is wrong with the graph.
        if options.fused:
            raise ConfigError(f"fused = true, but {graph} cannot use the compiled kernels: {error}") from error
        return None, str(error)


def _fused(graph: Path, options: OnnxOptions) -> "FusedSession":
    if options.kind != "cpu" or options.threads != 1 or options.io_binding:
        raise ConfigError('it needs device = "cpu", threads = 1 and no io_binding')
    if not mentions_int8_matmuls(graph):
        raise ConfigError(NO_INT8_LAYERS)
    reason = why_not_usable()
    if reason is not None:
        if why_not_compiled() is not None:
            _warn_once(f"int8 models run at about half the speed: {reason}")
        raise ConfigError(reason)
    # Needs `onnx` and the compiled kernels, which may be missing.
    from rerankd.engines.onnx.fused import open_fused  # noqa: PLC0415

    return open_fused(graph, lambda part: _session(part, options, config=exact_int8()))


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _open(graph: Path, options: OnnxOptions) -> tuple[ort.InferenceSession, bool]:
    """The session, and whether its int8 matmuls are exact. Inexact scores get a cache key of their own."""
    wanted = _PROVIDERS[options.kind]
    try:
        session, exact = _exact_if_possible(graph, options)
    except Exception as error:
        raise ConfigError(f"ONNX Runtime cannot open {graph}: {error}") from error
    if wanted[0] not in session.get_providers():
        raise ConfigError(
            f"device {options.device!r}: ONNX Runtime could not start {wanted[0]} and would use the CPU instead; "
            'are the driver and the CUDA libraries installed? Or set device = "cpu"'
        )
    return session, exact


def _exact_if_possible(graph: Path, options: OnnxOptions) -> tuple[ort.InferenceSession, bool]:
    try:
        return _session(graph, options, config=exact_int8()), True
    except Exception as error:
        if _SHARED_WEIGHTS not in str(error):
            raise
    logger.warning(
        "scores may be far off on this CPU, which has no VNNI: nodes of the graph share int8 weights, and "
        "ONNX Runtime cannot multiply these exactly; export the model again with `rerankd export`",
        extra={"graph": str(graph)},
    )
    return _session(graph, options, config={}), False


def _session(graph: Path | bytes, options: OnnxOptions, *, config: Mapping[str, str]) -> ort.InferenceSession:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session_options.inter_op_num_threads = 1
    session_options.graph_optimization_level = _OPTIMIZATION[options.graph_optimization]
    session_options.log_severity_level = 3
    for key, value in config.items():
        session_options.add_session_config_entry(key, value)
    return ort.InferenceSession(
        graph,
        sess_options=session_options,
        providers=[(provider, _provider_options(provider, options)) for provider in _PROVIDERS[options.kind]],
        disabled_optimizers=_SLOW_FUSIONS[options.kind],
    )


def _provider_options(provider: str, options: OnnxOptions) -> dict[str, Any]:
    """The configured options are for the device's own provider; fallback providers would reject them."""
    if provider == "CPUExecutionProvider":
        return {}
    own = options.provider_options if provider == _PROVIDERS[options.kind][0] else {}
    return {"device_id": options.number, **own}


def _check_output_tokens(session: ort.InferenceSession, wanted: Sequence[int]) -> None:
    """Refuse a language model that was exported for other tokens than the scorer reads."""
    stored = json.loads(session.get_modelmeta().custom_metadata_map.get(OUTPUT_TOKENS, "[]"))
    if stored and not wanted:
        raise ConfigError("this graph is a language model's; name the scorer that it was exported for")
    if stored[: len(wanted)] != list(wanted):
        raise ConfigError(
            f"this graph gives the logits of tokens {stored}, the scorer reads {list(wanted)}; export it with the "
            "scorer's template and window: `rerankd export --method`"
        )


def _vectors_of(session: ort.InferenceSession, spec: EngineSpec) -> _Output:
    """The output with a vector for each text, or the one with a vector for each token and what pools these.

    Raises:
        ConfigError: there is neither, or the model has layers that the graph lacks.
    """
    head = read_embedding_head(ModelFiles.read(spec.folder))
    outputs = {node.name: node.shape for node in session.get_outputs()}
    # What a graph pooled itself holds the prompt.
    if head.pools_prompt and len(outputs.get(_POOLED_OUTPUT, ())) == len(("texts", "width")):
        return _Output(_POOLED_OUTPUT, head.outputs)
    tokens = [name for name, shape in outputs.items() if len(shape) == len(("texts", "tokens", "width"))]
    if not tokens:
        raise ConfigError(
            f"the ONNX graph gives {', '.join(outputs)}; an embedding model's gives {', '.join(_TOKEN_OUTPUTS)} or "
            f"{_POOLED_OUTPUT}"
        )
    name = next((name for name in _TOKEN_OUTPUTS if name in tokens), tokens[0])
    return _Output(name, head.outputs, Pooler(head))


def _logits_of(session: ort.InferenceSession, spec: EngineSpec) -> _Output:
    """The output with one row per sequence, usually called logits."""
    outputs = session.get_outputs()
    output = next((node for node in outputs if node.name == _OUTPUT), outputs[0])
    check_output(output.name, output.shape)
    return _Output(output.name, len(spec.output_tokens) or None)
