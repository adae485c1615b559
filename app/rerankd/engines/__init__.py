"""The engines by name. A new engine is a file in this folder and one line here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, Final

from rerankd.config.extras import missing
from rerankd.config.options import read_options
from rerankd.engines.base import Engine, EngineSpec
from rerankd.engines.replicas import load_replicas, on_each_device
from rerankd.errors import ConfigError


def _onnx(spec: EngineSpec) -> Engine:
    from rerankd.engines.onnx.engine import OnnxEngine  # noqa: PLC0415 - a service needs the runtimes of its own engines only

    return OnnxEngine.load(spec)


def _openvino(spec: EngineSpec) -> Engine:
    from rerankd.engines.openvino import OpenVinoEngine  # noqa: PLC0415 - as above

    return OpenVinoEngine.load(spec)


def _torch_encoder(spec: EngineSpec) -> Engine:
    from rerankd.engines.torch.encoder import TorchEncoderEngine  # noqa: PLC0415 - as above

    return TorchEncoderEngine.load(spec)


def _torch_causal(spec: EngineSpec) -> Engine:
    from rerankd.engines.torch.causal import TorchCausalEngine  # noqa: PLC0415 - as above

    return TorchCausalEngine.load(spec)


def _torch_generate(spec: EngineSpec) -> Engine:
    from rerankd.engines.torch.generate import TorchGenerateEngine  # noqa: PLC0415 - as above

    return TorchGenerateEngine.load(spec)


def _endpoint(spec: EngineSpec) -> Engine:
    from rerankd.engines.remote.endpoint import EndpointEngine  # noqa: PLC0415 - as above

    return EndpointEngine.load(spec)


ENGINES: Final[dict[str, Callable[[EngineSpec], Engine]]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch-encoder": _torch_encoder,
    "torch-causal": _torch_causal,
    "torch-generate": _torch_generate,
    "endpoint": _endpoint,
}

# The module of each engine's options and `check`. Its import needs the engine's runtime.
_OPTIONS: Final = {
    "onnx": ("rerankd.engines.onnx.engine", "OnnxOptions"),
    "openvino": ("rerankd.engines.openvino", "OpenVinoOptions"),
    "torch-encoder": ("rerankd.engines.torch.encoder", "TorchEncoderOptions"),
    "torch-causal": ("rerankd.engines.torch.causal", "TorchCausalOptions"),
    "torch-generate": ("rerankd.engines.torch.generate", "TorchGenerateOptions"),
    "endpoint": ("rerankd.engines.remote.endpoint", "EndpointOptions"),
}

_WITHOUT_DEVICES: Final = ("openvino", "endpoint")
_WITHOUT_CODE: Final = ("onnx", "openvino", "endpoint")

_EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "torch": "torch",
    "transformers": "torch",
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
    _check_entry(name, devices=devices, trust_remote_code=trust_remote_code)
    module, shape = _OPTIONS[name]
    with _runtime_of(name):
        for options_there in on_each_device(options, devices):
            read_options(options_there, getattr(import_module(module), shape), of=f"engine {name!r}")


def check_files(name: str, spec: EngineSpec) -> None:
    """Run the checks that loading does before it reads weights. Takes milliseconds.

    Raises:
        ConfigError: as `load_engine`.
    """
    check_engine(name, spec.options, devices=spec.devices, trust_remote_code=spec.trust_remote_code)
    with _runtime_of(name):
        check = import_module(_OPTIONS[name][0]).check
        for options in on_each_device(spec.options, spec.devices):
            check(replace(spec, devices=(), options=options))


def load_engine(name: str, spec: EngineSpec) -> Engine:
    """Load an engine.

    Raises:
        ConfigError: no such engine, its runtime is not installed, or the model's files do not fit it.
    """
    _check_entry(name, devices=spec.devices, trust_remote_code=spec.trust_remote_code)
    with _runtime_of(name):
        return load_replicas(ENGINES[name], spec) if spec.devices else ENGINES[name](spec)


def _check_entry(name: str, *, devices: Sequence[str], trust_remote_code: bool) -> None:
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    if devices and name in _WITHOUT_DEVICES:
        raise ConfigError(f"engine {name!r} has no devices to choose from; leave `devices` out")
    if trust_remote_code and name in _WITHOUT_CODE:
        raise ConfigError(f"engine {name!r} runs no code of a model's repository; leave `trust_remote_code` out")


@contextmanager
def _runtime_of(engine: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise missing(str(error.name), extra=extra, of=f"engine {engine!r}") from None
