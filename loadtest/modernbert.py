"""Layers of ModernBERT-base's shape in an int8 graph of our own export, and what computes them: ONNX Runtime, or our
kernels with each instruction set. Needs torch and transformers.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import onnx
import torch
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec, LogitsEngine
from rerankd.engines.onnx import kernels
from rerankd.tasks.encoding import Encoding
from rerankd.tools.quantizing import quantize_per_token
from rerankd.tools.torch_graphs import classifier_graph

# One with global attention and two with local attention, as in every three of ModernBERT-base's 22.
LAYERS: Final = 3
_WORDS: Final = 1000


def passes(*, sequences: int, tokens: int) -> dict[str, Callable[[], object]]:
    """A forward pass by ONNX Runtime and by our kernels with each instruction set, by name."""
    rng = np.random.default_rng(1)
    batch = [Encoding(rng.integers(5, _WORDS, tokens), tokens // 8) for _ in range(sequences)]
    engines: dict[str, LogitsEngine] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(quantize_per_token(classifier_graph(_model())), folder / "model.int8.onnx")
        engines["ONNX Runtime"] = _engine(folder, fused=False)
        for instruction_set in kernels.instruction_sets():
            kernels.use_instruction_set(instruction_set)
            engines[instruction_set] = _engine(folder, fused=True)
    return {name: lambda engine=engine: engine.run(batch) for name, engine in engines.items()}  # type: ignore[misc]


def _engine(folder: Path, *, fused: bool) -> LogitsEngine:
    return load_engine("onnx", EngineSpec(folder=folder, pad_id=0, options={"fused": fused}))


def _model() -> ModernBertForSequenceClassification:
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    config = ModernBertConfig(vocab_size=_WORDS, num_hidden_layers=LAYERS, num_labels=1, **special)
    config._attn_implementation = "eager"  # noqa: SLF001 - what `rerankd export` asks for when it loads a model
    return ModernBertForSequenceClassification(config).eval()
