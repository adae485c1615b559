"""The engines by name. A new engine is a file in this folder and one line here."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Final

from rerankd.config.extras import missing
from rerankd.config.options import read_options
from rerankd.engines.base import Engine, EngineSpec, RemoteEngine, computed_here
from rerankd.engines.replicas import load_replicas, on_each_device
from rerankd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """Where an engine is and what it can do. Its module, which holds the class `engine`, its `options` and a function
    `check`, is imported only when the engine is used: that needs the engine's runtime.
    """

    module: str
    engine: str
    options: str
    tasks: tuple[str, ...]
    chooses_devices: bool = True
    runs_code: bool = True
    takes_adapters: bool = False


ENGINES: Final[Mapping[str, EngineKind]] = {
    "onnx": EngineKind(
        module="rerankd.engines.onnx.engine",
        engine="OnnxEngine",
        options="OnnxOptions",
        tasks=("classify", "read_tokens", "embed"),
        runs_code=False,
    ),
    "openvino": EngineKind(
        module="rerankd.engines.openvino",
        engine="OpenVinoEngine",
        options="OpenVinoOptions",
        tasks=("classify", "read_tokens"),
        chooses_devices=False,
        runs_code=False,
    ),
    "torch-encoder": EngineKind(
        module="rerankd.engines.torch.encoder",
        engine="TorchEncoderEngine",
        options="TorchEncoderOptions",
        tasks=("classify", "embed", "prune"),
        takes_adapters=True,
    ),
    "torch-vectors": EngineKind(
        module="rerankd.engines.torch.vectors",
        engine="TorchVectorsEngine",
        options="WeightsOptions",
        tasks=("embed_tokens", "weigh_words"),
    ),
    "torch-causal": EngineKind(
        module="rerankd.engines.torch.causal",
        engine="TorchCausalEngine",
        options="TorchCausalOptions",
        tasks=("read_tokens",),
        takes_adapters=True,
    ),
    "torch-attention": EngineKind(
        module="rerankd.engines.torch.attend",
        engine="TorchAttentionEngine",
        options="LargeWeightsOptions",
        tasks=("attend",),
        takes_adapters=True,
    ),
    "torch-vision": EngineKind(
        module="rerankd.engines.torch.vision",
        engine="TorchVisionEngine",
        options="TorchVisionOptions",
        tasks=("read_images",),
        runs_code=False,
        takes_adapters=True,
    ),
    "torch-seq2seq": EngineKind(
        module="rerankd.engines.torch.seq2seq",
        engine="TorchSeq2SeqEngine",
        options="TorchSeq2SeqOptions",
        tasks=("read_tokens",),
        takes_adapters=True,
    ),
    "torch-markers": EngineKind(
        module="rerankd.engines.torch.markers",
        engine="TorchMarkersEngine",
        options="WeightsOptions",
        tasks=("read_vectors",),
        runs_code=False,
    ),
    "torch-generate": EngineKind(
        module="rerankd.engines.torch.generate",
        engine="TorchGenerateEngine",
        options="TorchGenerateOptions",
        tasks=("generate", "reason", "sample"),
        takes_adapters=True,
    ),
    "endpoint": EngineKind(
        module="rerankd.engines.remote.endpoint",
        engine="EndpointEngine",
        options="EndpointOptions",
        tasks=("chat", "sample_chat"),
        chooses_devices=False,
        runs_code=False,
    ),
    "remote": EngineKind(
        module="rerankd.engines.remote.service",
        engine="ServiceEngine",
        options="ServiceOptions",
        tasks=("rank",),
        chooses_devices=False,
        runs_code=False,
    ),
}

_EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "torch": "torch",
    "transformers": "torch",
    "PIL": "images",
    "accelerate": "llm",
    "bitsandbytes": "llm",
    "httpx": "endpoint",
}


def check_engine(
    name: str, options: Mapping[str, Any], *, devices: Sequence[str], trust_remote_code: bool = False
) -> None:
    """Check an engine's name and options without a model.

    Raises:
        ConfigError: no such engine, its runtime is not installed, or it has no such option.
    """
    kind = _kind(name, devices=devices, trust_remote_code=trust_remote_code)
    with _runtime_of(name):
        shape = getattr(import_module(kind.module), kind.options)
        for options_there in on_each_device(options, devices):
            read_options(options_there, shape, of=f"engine {name!r}")


def check_files(name: str, spec: EngineSpec) -> None:
    """Run the checks that loading does before it reads weights. Takes milliseconds.

    Raises:
        ConfigError: as `load_engine`.
    """
    check_engine(name, spec.options, devices=spec.devices, trust_remote_code=spec.trust_remote_code)
    _check_task(name, spec.task.name)
    _check_adapter(name, spec)
    with _runtime_of(name):
        check = import_module(ENGINES[name].module).check
        for options in on_each_device(spec.options, spec.devices):
            check(replace(spec, devices=(), options=options))


def load_engine(name: str, spec: EngineSpec) -> Engine[Any, Any]:
    """Load an engine that computes here, for the payloads and results of the spec's task.

    Raises:
        ConfigError: as `load_any_engine`, or the engine has a remote model.
    """
    return computed_here(load_any_engine(name, spec))


def load_any_engine(name: str, spec: EngineSpec) -> Engine[Any, Any] | RemoteEngine[Any, Any]:
    """Load an engine, for the payloads and results of the spec's task.

    Raises:
        ConfigError: no such engine, it does not run the task, its runtime is not installed, or the model's files do not
            fit it.
    """
    kind = _kind(name, devices=spec.devices, trust_remote_code=spec.trust_remote_code)
    _check_task(name, spec.task.name)
    _check_adapter(name, spec)
    with _runtime_of(name):
        load: Callable[[EngineSpec], Engine[Any, Any]] = getattr(import_module(kind.module), kind.engine).load
        return load_replicas(load, spec) if spec.devices else load(spec)


def release_memory() -> None:
    """Give the memory of engines that are gone back: torch keeps a device's for later ones, glibc the machine's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def takes_adapters(name: str) -> bool:
    """Whether an engine of this name puts adapters on its models."""
    return name in ENGINES and ENGINES[name].takes_adapters


def _check_adapter(name: str, spec: EngineSpec) -> None:
    if spec.adapter is not None and not takes_adapters(name):
        able = [other for other, kind in ENGINES.items() if kind.takes_adapters]
        raise ConfigError(
            f"engine {name!r} takes no adapter; set engine to one of: {', '.join(able)}, or merge it into the model "
            "and export that"
        )


def _kind(name: str, *, devices: Sequence[str], trust_remote_code: bool) -> EngineKind:
    kind = ENGINES.get(name)
    if kind is None:
        raise ConfigError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    if devices and not kind.chooses_devices:
        raise ConfigError(f"engine {name!r} has no devices to choose from; leave `devices` out")
    if trust_remote_code and not kind.runs_code:
        raise ConfigError(f"engine {name!r} runs no code of a model's repository; leave `trust_remote_code` out")
    return kind


def _check_task(name: str, task: str) -> None:
    able = [other for other, kind in ENGINES.items() if task in kind.tasks]
    if name not in able:
        raise ConfigError(
            f"this scorer needs an engine that runs the task {task!r}, and {name!r} runs "
            f"{' and '.join(ENGINES[name].tasks)}; set engine to one of: {', '.join(able)}"
        )


@contextmanager
def _runtime_of(engine: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise missing(str(error.name), extra=extra, of=f"engine {engine!r}") from None
