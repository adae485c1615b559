"""Encoder layers in C++ (layers.h). The import fails where they could not be compiled."""

from rerankd.engines.onnx.kernels._compiled import MASKED, Embeddings, Layer, LayerNorm, Layers, Linear, supported

__all__ = ["MASKED", "Embeddings", "Layer", "LayerNorm", "Layers", "Linear", "supported"]
