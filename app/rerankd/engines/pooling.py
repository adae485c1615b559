"""Pools tokens' vectors that a graph gives, as sentence-transformers does."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from rerankd.domain import FloatArray, IntArray
from rerankd.errors import ConfigError
from rerankd.recognition.modules import ModularHead, Normalize, Pooling

_SHORTEST: Final = np.float32(1e-12)


class Pooler:
    """The modules behind an encoder, of those that have no weights."""

    def __init__(self, head: ModularHead) -> None:
        """Refuse modules that a graph of the encoder alone lacks.

        Raises:
            ConfigError: there is a dense layer or a layer norm.
        """
        if not all(isinstance(layer, Normalize) for layer in head.layers):
            raise ConfigError(
                "the ONNX graph gives the vectors of tokens, and this model has layers behind its pooling, which the "
                'graph lacks; set engine = "torch-encoder"'
            )
        self.pools_prompt = head.pools_prompt
        self._pools = [_POOLS[pooling] for pooling in head.poolings]
        self._normalizes = bool(head.layers)

    def pool(self, hidden: FloatArray, mask: IntArray) -> FloatArray:
        """Vectors of shape [texts, width of all poolings] from those of tokens, shape [texts, longest, width]. `mask`,
        shape [texts, longest], is 1 for tokens that are pooled.
        """
        vectors: FloatArray = np.concatenate([pool(hidden, mask) for pool in self._pools], axis=1)
        if not self._normalizes:
            return vectors
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SHORTEST)
        return vectors


def _first(hidden: FloatArray, mask: IntArray) -> FloatArray:
    vectors: FloatArray = hidden[np.arange(len(hidden)), mask.argmax(axis=1)]
    return vectors


def _last(hidden: FloatArray, mask: IntArray) -> FloatArray:
    vectors: FloatArray = hidden[np.arange(len(hidden)), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)]
    return vectors


def _sum(hidden: FloatArray, weights: IntArray) -> FloatArray:
    sums: FloatArray = np.einsum("tlw,tl->tw", hidden, weights.astype(np.float32))
    return sums


def _mean(hidden: FloatArray, mask: IntArray) -> FloatArray:
    mean: FloatArray = _sum(hidden, mask) / mask.sum(axis=1, keepdims=True).astype(np.float32)
    return mean


def _mean_of_root(hidden: FloatArray, mask: IntArray) -> FloatArray:
    mean: FloatArray = _sum(hidden, mask) / np.sqrt(mask.sum(axis=1, keepdims=True).astype(np.float32))
    return mean


def _weighted_mean(hidden: FloatArray, mask: IntArray) -> FloatArray:
    weights = mask * np.arange(1, mask.shape[1] + 1)
    mean: FloatArray = _sum(hidden, weights) / weights.sum(axis=1, keepdims=True).astype(np.float32)
    return mean


def _highest(hidden: FloatArray, mask: IntArray) -> FloatArray:
    highest: FloatArray = np.where(mask[:, :, None] == 0, np.float32(-np.inf), hidden).max(axis=1)
    return highest


_POOLS: Final[Mapping[Pooling, Callable[[FloatArray, IntArray], FloatArray]]] = {
    "cls": _first,
    "max": _highest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_of_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
