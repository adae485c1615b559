"""Layers of an encoder in C++ (layers.h). Importing it fails where they could not be compiled."""

from app.engines.kernels._compiled import Layer, Layers, Linear, Normalisation, supported

__all__ = ["Layer", "Layers", "Linear", "Normalisation", "supported"]
