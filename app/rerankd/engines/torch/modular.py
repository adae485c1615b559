"""Classifiers that pool the vectors of all tokens outside of transformers' classes.

Such are cross-encoders whose head lies in modules of its own, as sentence-transformers saves them, and decoders whose
tokens see each other in both directions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from rerankd.errors import ConfigError
from rerankd.recognition.modules import HeadLayer, LayerActivation, ModularHead, Pooling

_ACTIVATIONS: Final[Mapping[LayerActivation, type[nn.Module]]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
}


class PooledClassifier(nn.Module):
    """An encoder and its head, in the shape of transformers' classifiers. Logits are divided by `temperature`."""

    def __init__(
        self, encoder: PreTrainedModel, head: nn.Module, *, pooling: Pooling, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self._pool = _POOLS[pooling]
        self._head = head.to(encoder.dtype)
        self._temperature = temperature
        self.eval()

    @property
    def config(self) -> Any:  # noqa: ANN401 - transformers' own
        return self.encoder.config

    @property
    def base_model(self) -> PreTrainedModel:
        return self.encoder

    def forward(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> SimpleNamespace:
        hidden = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        return SimpleNamespace(logits=self._head(self._pool(hidden, attention_mask)) / self._temperature)


def modular_classifier(encoder: PreTrainedModel, head: ModularHead) -> PooledClassifier:
    """An encoder with the head of its own modules.

    Raises:
        ConfigError: their weights do not fit what their configs say.
    """
    return PooledClassifier(encoder, nn.Sequential(*map(_layer, head.layers)), pooling=head.pooling)


def bidirectional_classifier(model: PreTrainedModel, *, pooling: Pooling, temperature: float) -> PooledClassifier:
    """A decoder's classifier whose tokens see each other in both directions; its config says `is_causal = False`."""
    for layer in model.base_model.layers:
        # Where a batch has no padding, attention is told by this instead of by a mask.
        layer.self_attn.is_causal = False
    return PooledClassifier(model.base_model, model.score, pooling=pooling, temperature=temperature)


class _Dense(nn.Module):
    """A linear layer, its activation, and where it has one the way around both."""

    def __init__(self, layer: HeadLayer, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.inputs, outputs, bias=layer.bias)
        self._activation = _ACTIVATIONS[layer.activation]()
        self._around = layer.residual
        if layer.residual and layer.inputs != outputs:
            self.residual: nn.Module = nn.Linear(layer.inputs, outputs, bias=False)
        else:
            self.residual = nn.Identity()

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._activation(self.linear(vectors))
        return out + self.residual(vectors) if self._around else out


class _LayerNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(vectors)
        return normed


def _layer(layer: HeadLayer) -> nn.Module:
    module = _LayerNorm(layer.inputs) if layer.outputs is None else _Dense(layer, layer.outputs)
    return _filled(module, layer.weights)


def _filled(module: nn.Module, path: Path) -> nn.Module:
    """Read a module's weights, all of them and no others.

    Raises:
        ConfigError: the file holds others than the module's config says.
    """
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ConfigError(
            f"{path} does not fit its config.json ({' '.join(str(error).split())[:200]}); download the model again"
        ) from None
    return module.eval()


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - rows are padded on the right
    return hidden[:, 0]


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    sums = (hidden * mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1, dtype=torch.float32)
    return (sums / mask.sum(dim=1, keepdim=True)).to(hidden.dtype)


def _highest(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


_POOLS: Final[Mapping[Pooling, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "cls": _first,
    "mean": _mean,
    "max": _highest,
    "lasttoken": _last,
}
