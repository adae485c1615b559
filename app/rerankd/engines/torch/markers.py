"""PyTorch decoders that are read at markers in a prompt, through a projector: jina-reranker-v3 and its relatives.

Wang et al., "jina-reranker-v3: Last but Not Late Interaction for Document Reranking", 2025. The hidden states at the
markers go through two linear layers with a ReLU between them, in float32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits, EngineSpec, task_of
from rerankd.engines.torch.device_memory import to_device, within_memory
from rerankd.engines.torch.positions import stretched_beyond
from rerankd.engines.torch.weights import WeightsOptions, check_weights, read_weights, torch_device
from rerankd.errors import ConfigError
from rerankd.recognition.weights import weight_files
from rerankd.tasks.read_vectors import MarkedPrompt, ReadVectors

_PROJECTOR: Final = ("projector.0.weight", "projector.2.weight")


class TorchMarkersEngine:
    """A decoder without a head, and its projector."""

    def __init__(
        self,
        model: PreTrainedModel,
        projector: nn.Module,
        *,
        device: torch.device,
        name: str,
        pad_id: int,
        workers: int,
    ) -> None:
        self._model = model
        self._projector = projector
        self._device = device
        self._pad_id = pad_id
        self.workers = workers
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchMarkersEngine":
        """Load safetensors weights.

        Raises:
            ConfigError: the folder holds no such model, or the device is not there.
        """
        options = check(spec)
        device = torch_device(options.device)
        precision = options.precision_on(device)
        model = read_weights("encoder", spec.folder, precision=precision, attention=options.attention)
        _refuse_other_attention(model)
        return cls(
            model.to(device),
            _projector(spec.folder, width=model.config.hidden_size).to(device),
            device=device,
            name=f"torch-markers/{device.type}/{precision}",
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
        )

    @property
    def preferred_batch(self) -> BatchLimits:
        if self._device.type == "cpu":
            return BatchLimits(tokens=4096, pairs=16)
        return BatchLimits(tokens=32_768, pairs=64)

    @torch.inference_mode()
    def run(self, prompts: Sequence[MarkedPrompt]) -> list[FloatArray]:
        """The vectors at each prompt's markers: arrays of shape [positions, width], float32.

        Raises:
            OutOfMemory: the batch does not fit the device's memory.
        """
        return within_memory(lambda: self._vectors(prompts))

    def _vectors(self, prompts: Sequence[MarkedPrompt]) -> list[FloatArray]:
        shape = len(prompts), max(len(prompt.ids) for prompt in prompts)
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = prompt.ids
            mask[row, : len(prompt.ids)] = 1
        hidden = self._model(
            input_ids=to_device(ids, self._device), attention_mask=to_device(mask, self._device), use_cache=False
        ).last_hidden_state
        rows = np.repeat(np.arange(len(prompts)), [len(prompt.positions) for prompt in prompts])
        places = np.concatenate([prompt.positions for prompt in prompts])
        read = hidden[to_device(rows, self._device), to_device(places, self._device)]
        vectors = np.asarray(self._projector(read.float()).cpu().numpy(), dtype=np.float32)
        return np.split(vectors, np.cumsum([len(prompt.positions) for prompt in prompts])[:-1])


def check(spec: EngineSpec) -> WeightsOptions:
    """The options.

    Raises:
        ConfigError: an option, the scorer or the folder does not fit. The weights are not read.
    """
    options = read_options(spec.options, WeightsOptions, of="engine 'torch-markers'")
    task_of(spec, ReadVectors)
    check_weights("encoder", spec.folder, options, trust_remote_code=False)
    return options


def _refuse_other_attention(model: PreTrainedModel) -> None:
    """Refuse a decoder whose layers cannot see what config.json says, or see more of a longer batch."""
    kinds = getattr(model.config, "layer_types", None) or ()
    if "sliding_attention" in kinds and not getattr(model.config, "sliding_window", None):
        raise ConfigError(
            "config.json names layers with sliding attention (layer_types), and no window: set use_sliding_window = "
            "true and sliding_window there, as the authors do"
        )
    if stretched_beyond(model) is not None:
        raise ConfigError("rope_type \"longrope\" is not supported by engine 'torch-markers'; serve another model")


def _projector(folder: Path, *, width: int) -> nn.Module:
    """Two linear layers without biases, as wide as their weights are.

    Raises:
        ConfigError: one of them is missing, or does not fit the one before.
    """
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name).float() for name in _PROJECTOR if name in tensors.keys()}  # noqa: SIM118 - no mapping
    sizes = [tuple(found[name].shape) if name in found else (0, 0) for name in _PROJECTOR]
    if sizes[0][1] != width or sizes[1][1] != sizes[0][0]:
        raise ConfigError(
            f"the weights in {folder} have no projector that fits ({', '.join(_PROJECTOR)} of shapes {sizes}); "
            "download the model again"
        )
    first, second = (nn.Linear(inputs, outputs, bias=False) for outputs, inputs in sizes)
    first.weight, second.weight = (nn.Parameter(found[name], requires_grad=False) for name in _PROJECTOR)
    return nn.Sequential(first, nn.ReLU(), second)
