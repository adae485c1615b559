"""Encoders whose tokens' vectors are pooled outside of transformers' classes.

Such are models whose head lies in modules of its own, as sentence-transformers saves them, and decoders whose tokens
see each other in both directions.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from rerankd.errors import ConfigError
from rerankd.recognition.modules import HeadLayer, LayerActivation, ModularHead, Normalize, Pooling

_ACTIVATIONS: Final[Mapping[LayerActivation, type[nn.Module]]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
}


class PooledModel(nn.Module):
    """An encoder and its head, in the shape of transformers' classifiers: the first `outputs` numbers that come out are
    called logits, and are divided by `temperature`. Several `poolings` are concatenated. Without `pools_prompt` it
    takes a mask `pooled` beside that of attention: the tokens that are pooled.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        head: nn.Module,
        *,
        poolings: Sequence[Pooling],
        temperature: float = 1.0,
        pools_prompt: bool = True,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pools_prompt = pools_prompt
        # Texts are padded behind, so the first token that is pooled is the first of all, unless that is a prompt's.
        pools = {**_POOLS, "cls": _first_of_all} if pools_prompt else _POOLS
        self._pools = [pools[pooling] for pooling in poolings]
        self._head = head.to(encoder.dtype)
        self._temperature = temperature
        self._outputs = outputs
        self.eval()

    @property
    def config(self) -> Any:  # noqa: ANN401 - transformers' own
        return self.encoder.config

    @property
    def base_model(self) -> PreTrainedModel:
        return self.encoder

    def forward(
        self, attention_mask: torch.Tensor, pooled: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> SimpleNamespace:
        hidden = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        mask = attention_mask if pooled is None else pooled
        vectors = torch.cat([pool(hidden, mask) for pool in self._pools], dim=-1)
        return SimpleNamespace(logits=self._head(vectors)[:, : self._outputs] / self._temperature)


class PruningModel(nn.Module):
    """A classifier of transformers with a second head of two classes on every token: whether it is dropped or kept.
    `tensors` are that head's. What is called logits has shape [texts, 1 + tokens]: the score, and each token's log-odds
    of being kept.
    """

    def __init__(self, classifier: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.classifier = classifier
        self._tokens = nn.Linear(classifier.config.hidden_size, 2)
        try:
            self._tokens.load_state_dict(tensors)
        except RuntimeError as error:
            raise ConfigError(f"the weights of the head that prunes are not whole: {str(error)[:200]}") from None
        self._tokens.to(classifier.dtype)
        self.eval()

    @property
    def config(self) -> Any:  # noqa: ANN401 - transformers' own
        return self.classifier.config

    @property
    def base_model(self) -> PreTrainedModel:
        model: PreTrainedModel = self.classifier.base_model
        return model

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        hidden = self.base_model(**inputs).last_hidden_state
        # RoBERTa's head pools by itself.
        pooler = getattr(self.classifier, "pooler", nn.Identity())
        score = self.classifier.classifier(pooler(hidden))[:, :1]
        dropped, kept = self._tokens(hidden).unbind(dim=-1)
        return SimpleNamespace(logits=torch.cat([score, kept - dropped], dim=1))


def modular_model(encoder: PreTrainedModel, head: ModularHead) -> PooledModel:
    """An encoder with the head of its own modules.

    Raises:
        ConfigError: their weights do not fit what their configs say.
    """
    layers = read_layers(head.layers)
    return PooledModel(encoder, layers, poolings=head.poolings, pools_prompt=head.pools_prompt, outputs=head.outputs)


def read_layers(layers: Sequence[HeadLayer | Normalize]) -> nn.Sequential:
    """Layers with their weights, one after the other.

    Raises:
        ConfigError: their weights do not fit what their configs say.
    """
    return nn.Sequential(*map(_layer, layers))


def bidirectional_classifier(model: PreTrainedModel, *, pooling: Pooling, temperature: float) -> PooledModel:
    """A decoder's classifier whose tokens see each other in both directions; its config says `is_causal = False`."""
    for layer in model.base_model.layers:
        # Where a batch has no padding, attention is told by this instead of by a mask.
        layer.self_attn.is_causal = False
    return PooledModel(model.base_model, model.score, poolings=[pooling], temperature=temperature)


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


class _Normalize(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return normalize(vectors, dim=-1)


def _layer(layer: HeadLayer | Normalize) -> nn.Module:
    if isinstance(layer, Normalize):
        return _Normalize()
    module = _LayerNorm(layer.inputs) if layer.outputs is None else _Dense(layer, layer.outputs)
    return _filled(module, layer)


def _filled(module: nn.Module, layer: HeadLayer) -> nn.Module:
    """Read a module's weights, all of them, and no others where the file holds no others' too.

    Raises:
        ConfigError: the file holds others than the module's config says.
    """
    weights = load_file(layer.weights)
    if layer.shared:
        weights = {name: weights[name] for name in module.state_dict() if name in weights}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{layer.weights} does not fit its config.json ({' '.join(str(error).split())[:200]}); download the model "
            "again"
        ) from None
    return module.eval()


def _first_of_all(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - as the others
    return hidden[:, 0]


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.argmax(dim=1)]


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    places = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), places]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (_sum(hidden, mask) / mask.sum(dim=1, keepdim=True)).to(hidden.dtype)


def _mean_of_root(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (_sum(hidden, mask) / mask.sum(dim=1, keepdim=True).sqrt()).to(hidden.dtype)


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The later a token, the more it weighs: 1, 2, 3... (Muennighoff, "SGPT", 2022)."""
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    sums = (hidden.float() * weights.unsqueeze(-1)).sum(dim=1)
    return (sums / weights.sum(dim=1, keepdim=True)).to(hidden.dtype)


def _sum(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask.unsqueeze(-1).to(hidden.dtype)).sum(dim=1, dtype=torch.float32)


def _highest(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


_POOLS: Final[Mapping[Pooling, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "cls": _first,
    "max": _highest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_of_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
