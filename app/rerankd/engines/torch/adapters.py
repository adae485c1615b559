"""Puts adapters on models, which keep the weights of their base: several adapters over one base share its memory.

An adapter adds two thin matmuls to a layer, x W^T + s (x A^T) B^T, or is merged into a dense weight of its own.
"""

import copy
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rerankd.errors import ConfigError, few
from rerankd.recognition.adapters import ADAPTER_WEIGHTS, Adapter

_PREFIX: Final = "base_model.model."
_MATRIX: Final = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# What peft puts between a module and its weights.
_WRAPPED: Final = re.compile(r"\.(?:modules_to_save|base_layer)\.")
# Where transformers 4.52 put the parts of models that read images, and where they were before.
_MOVED: Final = (
    (re.compile(r"model\.(?=layers\.|embed_tokens\.|norm\.)"), "model.language_model."),
    (re.compile(r"visual\."), "model.visual."),
)
# Models by what they were loaded from, as long as any model has their weights.
_bases: "WeakValueDictionary[Hashable, PreTrainedModel]" = WeakValueDictionary()


def with_shared_weights(key: Hashable, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model of its own whose weights are those of every model with this key; `load` is called for the first."""
    base = _bases.get(key)
    if base is None:
        base = _bases[key] = load()
    model = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
    # A tuple, so that torch does not take it for a part of the model.
    model.shares_weights_of = (base,)
    return model


class LoraLayer(nn.Module):
    """A linear layer and what an adapter adds to it. `down` has shape [rank, inputs], `up` [outputs, rank]."""

    def __init__(self, layer: nn.Module, down: torch.Tensor, up: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The base's, for models that ask a layer for its type."""
        weight: torch.Tensor = self.layer.weight
        return weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        thin = nn.functional.linear(nn.functional.linear(inputs, self.down), self.up)
        out: torch.Tensor = self.layer(inputs)
        return out + thin


@torch.no_grad()
def put_on(model: PreTrainedModel, adapter: Adapter, *, merge: bool) -> None:
    """Change a model in place. With `merge` every changed layer gets a weight of its own, and none is computed twice.

    Raises:
        ConfigError: the adapter holds something that does not fit this model.
    """
    matrices, replaced = _sorted(model, adapter)
    for name, sides in matrices.items():
        layer = _layer(model, adapter, name, sides)
        scale = adapter.scale(name, rank=len(sides["A"]))
        # Single rows of the head are read from its weight (head_rows.py).
        if merge or layer is model.get_output_embeddings():
            change = scale * (sides["B"].float() @ sides["A"].float()).to(layer.weight.device)
            dense = layer.weight.float() + (change.T if isinstance(layer, Conv1D) else change)
            layer.weight = nn.Parameter(dense.to(layer.weight.dtype), requires_grad=False)
        else:
            down, up = (side.to(layer.weight) for side in (sides["A"], scale * sides["B"].float()))
            model.set_submodule(name, LoraLayer(layer, down, up))
    for name, tensor in replaced.items():
        module, _, weight = name.rpartition(".")
        own = model.get_submodule(module)
        setattr(own, weight, nn.Parameter(tensor.to(getattr(own, weight)), requires_grad=False))


def _sorted(
    model: PreTrainedModel, adapter: Adapter
) -> tuple[Mapping[str, Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]:
    """The adapter's matrices by module and side, and the weights that it replaces by name.

    Raises:
        ConfigError: there are others, or one of two matrices is missing.
    """
    path = adapter.folder / ADAPTER_WEIGHTS
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    unknown = []
    own = model.state_dict()
    for key, tensor in load_file(path).items():
        name = _moved(model, _WRAPPED.sub(".", key.removeprefix(_PREFIX)))
        fits = name in own and own[name].shape == tensor.shape
        match = _MATRIX.fullmatch(name)
        if match:
            matrices.setdefault(match["module"], {})[match["side"]] = tensor
        elif fits and adapter.replaces(name):
            replaced[name] = tensor
        # peft writes the base's embeddings too where the head is changed.
        elif not fits or not torch.equal(own[name], tensor.to(own[name])):
            unknown.append(key)
    if unknown:
        raise ConfigError(
            f"{path} holds {few(sorted(unknown))}, which {type(model).__name__} does not have in this shape, or which "
            "its adapter_config.json does not name; it is an adapter of another model, or of another kind"
        )
    single = sorted(name for name, sides in matrices.items() if len(sides) == 1)
    if single or not matrices:
        raise ConfigError(f"{path} lacks one of the two matrices of {few(single) or 'every module'}; save it again")
    return matrices, replaced


def _moved(model: PreTrainedModel, name: str) -> str:
    """The name that a weight has now."""
    if getattr(model.config, "vision_config", None) is not None:
        for before, now in _MOVED:
            if before.match(name):
                return before.sub(now, name, count=1)
    return name


def _layer(model: PreTrainedModel, adapter: Adapter, name: str, sides: Mapping[str, torch.Tensor]) -> Any:  # noqa: ANN401 - a layer
    """The layer that two matrices change.

    Raises:
        ConfigError: the model has none of that name and shape.
    """
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear | Conv1D):
        raise ConfigError(
            f"{adapter.folder} changes {name}, and {type(model).__name__} has no linear layer of that name; it is an "
            f"adapter of {adapter.base!r}"
        )
    outputs, inputs = layer.weight.shape[::-1] if isinstance(layer, Conv1D) else layer.weight.shape
    if (sides["A"].shape[1], sides["B"].shape[0], sides["B"].shape[1]) != (inputs, outputs, sides["A"].shape[0]):
        raise ConfigError(
            f"{adapter.folder}: its matrices for {name} change a layer of {sides['A'].shape[1]} inputs and "
            f"{sides['B'].shape[0]} outputs, and the model's has {inputs} and {outputs}; it is an adapter of "
            f"{adapter.base!r}"
        )
    return layer
