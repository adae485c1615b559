"""Layers of an encoder in C++ (layers.h). Importing it fails where they could not be compiled."""

from app.engines.kernels._compiled import Embeddings, Layer, Layers, Linear, Normalisation, supported

__all__ = ["Embeddings", "Layer", "Layers", "Linear", "Normalisation", "supported"]
