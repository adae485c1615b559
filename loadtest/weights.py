"""One model's weights in the layouts that the contestants of `loadtest.cross_server` want. Needs torch."""

import shutil
from pathlib import Path
from typing import Final

from app.exporting import GRAPHS, export_cross_encoder
from loadtest.contestants import OUR_ENGINES, Precision, Weights, registry_name
from loadtest.random_models import build

_PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "int8")


def prepare_weights(model: Path | None, folder: Path) -> Weights:
    """Export a folder of safetensors to ONNX, and lay both out as each server finds them. Without a model: a BERT of
    MiniLM-L6's shape with random weights.
    """
    model = (model or build("minilm-l6", folder / "model")).resolve()
    onnx = folder / "onnx"
    export_cross_encoder(model, onnx, precisions=list(_PRECISIONS))
    for engine, precision in OUR_ENGINES:
        (onnx / registry_name(engine, precision)).write_text(
            f'[[model]]\nname = "model"\nscorer = "cross-encoder"\nengine = "{engine}"\npath = "{onnx}"\n'
            f'engine_options = {{ file = "{GRAPHS[precision]}" }}\n',
            encoding="utf-8",
        )
    return Weights(
        safetensors=model,
        onnx=onnx,
        only_float32=_with_graph(onnx, folder / "only-float32", GRAPHS["float32"], "model.onnx"),
        only_quantized=_with_graph(onnx, folder / "only-quantized", GRAPHS["int8"], "model_quantized.onnx"),
    )


def _with_graph(onnx: Path, folder: Path, graph: str, name: str) -> Path:
    """A folder with one graph of the two, under the name that infinity looks for."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in onnx.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(onnx / graph, folder / name)
    return folder
