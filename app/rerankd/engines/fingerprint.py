"""What in an engine changes a score: its name, its options except those without effect, its libraries' versions."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

from rerankd import __version__
from rerankd.engines.base import Engine, EngineSpec, RemoteEngine

_PLACE: Final = "the engine's name contains the kind of device; its number does not matter"
_NAMED: Final = "the engine's name contains the outcome"
_THREADS: Final = "threads split the rows and columns of a matmul, never one sum"
_CALLS: Final = {
    "api_key_file": "it says who pays",
    "failures": "only when the remote counts as away",
    "pause_s": "only when a remote that is away is asked again",
    "retries": "only how often a failed request is repeated",
    "timeout_s": "only how long an answer may take",
}
# Options that cannot change a score, and why. All other options are part of cache keys.
WITHOUT_EFFECT: Final[Mapping[str, Mapping[str, str]]] = {
    "onnx": {
        "device": _PLACE,
        "fused": _NAMED,
        "io_binding": "only where the inputs are in memory",
        "threads": _THREADS,
    },
    "openvino": {"kept_kernels": "only which compiled kernels stay in memory", "threads": _THREADS},
    "torch-encoder": {"device": _PLACE},
    "torch-vectors": {"device": _PLACE},
    "torch-causal": {
        "device": _PLACE,
        "prefix_tokens": "only how many results stay in memory",
    },
    "torch-vision": {
        "device": _PLACE,
        "prefix_tokens": "only how many results stay in memory",
    },
    "torch-seq2seq": {"device": _PLACE},
    "torch-markers": {"device": _PLACE},
    "torch-attention": {"device": _PLACE},
    "torch-generate": {"device": _PLACE},
    "endpoint": _CALLS,
    "remote": {
        **_CALLS,
        "documents_per_min": "only how many may be sent",
        "max_documents": "a document's score is its own, whatever is sent with it",
    },
}
# Libraries whose next version may sum in another order.
_LIBRARIES: Final[Mapping[str, Sequence[str]]] = {
    "onnx": ["onnxruntime"],
    "openvino": ["openvino"],
    "torch-encoder": ["torch", "transformers"],
    "torch-vectors": ["torch", "transformers"],
    "torch-causal": ["torch", "transformers"],
    "torch-vision": ["torch", "transformers"],
    "torch-seq2seq": ["torch", "transformers"],
    "torch-markers": ["torch", "transformers"],
    "torch-attention": ["torch", "transformers"],
    "torch-generate": ["torch", "transformers"],
}


def engine_fingerprint(name: str, engine: Engine[Any, Any] | RemoteEngine[Any, Any], spec: EngineSpec) -> str:
    """Everything about a loaded engine that changes a score, except the model's files. For cache keys, never shown."""
    scored = {key: value for key, value in spec.options.items() if key not in WITHOUT_EFFECT.get(name, {})}
    versions = [__version__, *(str(import_module(library).__version__) for library in _LIBRARIES.get(name, []))]
    return json.dumps([engine.name, versions, spec.trust_remote_code, scored], sort_keys=True, default=str)
