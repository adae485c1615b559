"""Encoder layers in C++ (layers.h). The import fails where they could not be compiled.

They are compiled for several instruction sets. The fastest that this CPU has is used, or the one that the environment
variable `RERANKD_INSTRUCTION_SET` names.
"""

from rerankd.engines.onnx.kernels._compiled import (
    MASKED,
    Embeddings,
    Layer,
    LayerNorm,
    Layers,
    Linear,
    Rotary,
    instruction_set,
    instruction_sets,
    lanes,
    peak,
    use_instruction_set,
)

__all__ = [
    "MASKED",
    "Embeddings",
    "Layer",
    "LayerNorm",
    "Layers",
    "Linear",
    "Rotary",
    "instruction_set",
    "instruction_sets",
    "lanes",
    "peak",
    "use_instruction_set",
]
