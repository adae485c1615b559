"""Writes one model's weights in the layouts that the contestants of `loadtest.cross_server` need. Needs torch.

Peers get the graphs that the field's own tools make: torch's export as it stands, and ONNX Runtime's dynamic
quantization of it, per channel. What `rerankd export` does beyond that is part of what is measured.
"""

import shutil
from pathlib import Path
from typing import Final

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from loadtest.contestants import OUR_ENGINES, OurEngine, Precision, Weights
from loadtest.random_models import build
from rerankd.engines.torch.weights import read_weights
from rerankd.tools.exporting import export_classifier
from rerankd.tools.graph_files import GRAPHS
from rerankd.tools.torch_graphs import classifier_graph

_PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "int8")


def prepare_weights(model: Path | None, folder: Path) -> Weights:
    """Export a folder of safetensors to ONNX, and lay both out as each server finds them. Without a model: a BERT of
    MiniLM-L6's shape with random weights.
    """
    model = (model or build("minilm-l6", folder / "model")).resolve()
    ours = folder / "onnx"
    export_classifier(model, ours, precisions=list(_PRECISIONS))
    for engine in OUR_ENGINES:
        (ours / engine.registry).write_text(_registry(engine, ours), encoding="utf-8")
    float32, quantized = _without_graph(ours, folder / "float32"), _without_graph(ours, folder / "quantized")
    graph = classifier_graph(read_weights("sequence classifier", model, attention="eager", trust_remote_code=False))
    # the exporter's shapes of inner tensors, on which ONNX Runtime's quantization fails
    del graph.graph.value_info[:]
    onnx.save(graph, float32 / "model.onnx")
    quantize_dynamic(
        float32 / "model.onnx", quantized / "model_quantized.onnx", per_channel=True, weight_type=QuantType.QInt8
    )
    return Weights(safetensors=model, onnx=ours, only_float32=float32, only_quantized=quantized)


def _registry(engine: OurEngine, folder: Path) -> str:
    fused = "" if engine.fused else ", fused = false"
    return (
        f'[[model]]\nname = "model"\nscorer = "cross-encoder"\nengine = "{engine.engine}"\npath = "{folder}"\n'
        f'engine_options = {{ file = "{GRAPHS[engine.precision]}"{fused} }}\n'
    )


def _without_graph(onnx_folder: Path, folder: Path) -> Path:
    """A folder with the tokenizer and the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in onnx_folder.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    return folder
