"""What of an engine changes a score: its name, its options except those without effect, its libraries' versions."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

from rerankd import __version__
from rerankd.engines.base import Engine, EngineSpec

_PLACE: Final = "the engine's name says what kind of device it is; its number changes nothing"
_NAMED: Final = "the engine's name says what came of it"
_THREADS: Final = "threads share the rows and columns of a product, and never one sum"
# Options that cannot change a score, and why. Every other option is part of cache keys, as are all of other engines.
WITHOUT_EFFECT: Final[Mapping[str, Mapping[str, str]]] = {
    "onnx": {
        "device": _PLACE,
        "fused": _NAMED,
        "io_binding": "it says where the inputs lie",
        "threads": _THREADS,
    },
    "openvino": {"kept_kernels": "it says which compiled kernels stay in memory", "threads": _THREADS},
    "torch-encoder": {"device": _PLACE},
    "torch-causal": {
        "device": _PLACE,
        "prefix_tokens": "it says how much of what was computed stays in memory",
    },
    "torch-generate": {"device": _PLACE},
    "endpoint": {
        "api_key_file": "it says who pays",
        "retries": "it says how often a lost answer is asked for",
        "timeout_s": "it says how long an answer may take",
    },
}
# The libraries whose next version may add up in another order.
_LIBRARIES: Final[Mapping[str, Sequence[str]]] = {
    "onnx": ["onnxruntime"],
    "openvino": ["openvino"],
    "torch-encoder": ["torch", "transformers"],
    "torch-causal": ["torch", "transformers"],
    "torch-generate": ["torch", "transformers"],
}


def engine_fingerprint(name: str, engine: Engine, spec: EngineSpec) -> str:
    """Everything about a loaded engine that changes a score, the model's files aside: for cache keys, never shown."""
    scored = {key: value for key, value in spec.options.items() if key not in WITHOUT_EFFECT.get(name, {})}
    versions = [__version__, *(str(import_module(library).__version__) for library in _LIBRARIES.get(name, []))]
    return json.dumps([engine.name, versions, spec.trust_remote_code, scored], sort_keys=True, default=str)
