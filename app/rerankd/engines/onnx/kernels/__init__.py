"""Encoder layers in C++ (layers.h). The import fails where they could not be compiled."""

from rerankd.engines.onnx.kernels._compiled import UNSEEN, Embeddings, Layer, Layers, Linear, Normalisation, supported

__all__ = ["UNSEEN", "Embeddings", "Layer", "Layers", "Linear", "Normalisation", "supported"]
