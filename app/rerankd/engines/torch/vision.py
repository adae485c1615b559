"""PyTorch models that read images and text: Qwen2-VL and Qwen3-VL, read at the last position.

As in `causal.py` nothing is generated, the rows of the head are few, and common prefixes are computed once. Images of a
pass go through the model's vision encoder one after another, and cannot change one another's numbers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from pydantic import Field
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits, EngineSpec, task_of
from rerankd.engines.torch.device_memory import to_device, within_memory
from rerankd.engines.torch.head_rows import PROBE, HeadRows
from rerankd.engines.torch.prefill import Prefill
from rerankd.engines.torch.prefixes import (
    PrefixStore,
    SharedPrefixes,
    beginnings_stand_alone,
    has_shareable_layers,
    shared_tokens,
)
from rerankd.engines.torch.weights import (
    Kind,
    LargeWeightsOptions,
    check_adapter,
    check_weights,
    load_language_model,
)
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.native import is_jina_m0
from rerankd.recognition.weights import weight_files
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_images import IllustratedEncoding, ReadImages, SeenImage

# The layers of a head of its own, as jina-reranker-m0 has one.
_OWN_HEAD: Final = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
_MODEL_TYPES: Final = ("qwen2_vl", "qwen3_vl")


class TorchVisionOptions(LargeWeightsOptions):
    """`[model.engine_options]` of the engine `torch-vision`."""

    share_prefixes: bool = Field(default=True, description="Compute what prompts begin with once.")
    prefix_tokens: int = Field(default=16_384, ge=0, description="Tokens whose keys and values are kept for that.")


class TorchVisionEngine:
    """A vision-language model; `head` makes logits of shape [rows, outputs] of last states [rows, hidden size]."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: Callable[[torch.Tensor], FloatArray],
        *,
        name: str,
        pad_id: int,
        workers: int,
        prefix_tokens: int,
    ) -> None:
        self._head = head
        self._prefill = Prefill(model, pad_id=pad_id)
        self._image_token = int(model.config.image_token_id)
        self._merge = int(model.config.vision_config.spatial_merge_size)
        sharing = prefix_tokens and has_shareable_layers(model) and beginnings_stand_alone(self._prefill)
        self._prefixes = SharedPrefixes(PrefixStore(max_tokens=prefix_tokens), self._prefill) if sharing else None
        self.workers = workers
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchVisionEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, the device is not there, or the head does more than multiply.
        """
        options = check(spec)
        tokens = task_of(spec, ReadImages).tokens
        model, name, precision = load_language_model(
            spec.folder,
            options,
            trust_remote_code=False,
            kind=_kind(spec.folder),
            adapter=spec.adapter,
            besides=() if tokens else _OWN_HEAD,
        )
        head = HeadRows(model, tokens) if tokens else _own_head(spec.folder, model)
        engine = cls(
            model,
            head,
            name=f"torch-vision/{name}",
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
            prefix_tokens=options.prefix_tokens if options.share_prefixes else 0,
        )
        if isinstance(head, HeadRows):
            with torch.inference_mode():
                read = torch.from_numpy(PROBE)[None].to(engine._prefill.device)
                whole = model(input_ids=read, use_cache=False).logits[0, -1]
            head.check(engine.run([Encoding(PROBE, 0)])[0], whole, precision=precision, engine="torch-vision")
        return engine

    @property
    def preferred_batch(self) -> BatchLimits:
        if self._prefill.device.type == "cpu":
            return BatchLimits(tokens=4096, pairs=16)
        return BatchLimits(tokens=32_768, pairs=64)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Encoding]) -> FloatArray:
        """Score prompts; the result has shape [prompts, outputs], float32.

        Raises:
            OutOfMemory: the batch does not fit the device's memory.
        """
        return within_memory(lambda: self._logits(prompts))

    def _logits(self, prompts: Sequence[Encoding]) -> FloatArray:
        shared = [shared_tokens(prompt) if self._prefixes else 0 for prompt in prompts]
        states = (
            self._prefixes.states_of([prompt.ids[:end] for prompt, end in zip(prompts, shared, strict=True)])
            if self._prefixes
            else [()] * len(prompts)
        )
        rests = [prompt.ids[end:] for prompt, end in zip(prompts, shared, strict=True)]
        return self._head(self._prefill.run(states, rests, besides=self._seen(prompts, shared))[0])

    def _seen(self, prompts: Sequence[Encoding], shared: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the model is given beside the tokens that follow the shared ones: patches of all images, and positions
        in three dimensions. Nothing where no prompt has an image.
        """
        images = [image for prompt in prompts if isinstance(prompt, IllustratedEncoding) for image in prompt.images]
        if not images:
            return {}
        longest = max(len(prompt.ids) - end for prompt, end in zip(prompts, shared, strict=True))
        positions = np.zeros((3, len(prompts), longest), dtype=np.int64)
        for row, (prompt, end) in enumerate(zip(prompts, shared, strict=True)):
            own = prompt.images if isinstance(prompt, IllustratedEncoding) else ()
            positions[:, row, : len(prompt.ids) - end] = self._positions(prompt.ids, own)[:, end:]
        grid = np.array([(1, image.rows, image.columns) for image in images], dtype=np.int64)
        patches = torch.from_numpy(np.concatenate([image.patches() for image in images]))
        device = self._prefill.device
        return {
            "pixel_values": patches.to(device),
            "image_grid_thw": to_device(grid, device),
            "position_ids": to_device(positions, device),
        }

    def _positions(self, ids: IntArray, images: Sequence[SeenImage]) -> IntArray:
        """Of each token in time, height and width, shape [3, tokens]. A text's go on behind an image's longer side."""
        positions = np.tile(np.arange(len(ids)), (3, 1))
        starts = np.flatnonzero((ids == self._image_token) & (np.roll(ids, 1) != self._image_token))
        for start, image in zip(starts.tolist(), images, strict=True):
            rows, columns = image.rows // self._merge, image.columns // self._merge
            at, end = positions[0, start], start + rows * columns
            positions[1, start:end] = at + np.repeat(np.arange(rows), columns)
            positions[2, start:end] = at + np.tile(np.arange(columns), rows)
            positions[0, start:end] = at
            positions[:, end:] = at + max(rows, columns) + np.arange(len(ids) - end)
        return positions


def check(spec: EngineSpec) -> TorchVisionOptions:
    """The options.

    Raises:
        ConfigError: an option, the scorer or the folder does not fit. The weights are not read.
    """
    options = read_options(spec.options, TorchVisionOptions, of="engine 'torch-vision'")
    task_of(spec, ReadImages)
    model_type = ModelFiles.read(spec.folder).model_type
    if model_type not in _MODEL_TYPES:
        raise ConfigError(
            f"{spec.folder}: engine 'torch-vision' computes {' and '.join(_MODEL_TYPES)}, and config.json says "
            f"model_type {model_type!r}; serve one of docs/models-supported.md"
        )
    check_weights(_kind(spec.folder), spec.folder, options, trust_remote_code=False)
    check_adapter(spec.adapter, options, trust_remote_code=False)
    return options


def _kind(folder: Path) -> Kind:
    return "encoder" if is_jina_m0(ModelFiles.read(folder)) else "vision-language model"


def _own_head(folder: Path, model: PreTrainedModel) -> Callable[[torch.Tensor], FloatArray]:
    """Two layers with a ReLU between them, in float32.

    Raises:
        ConfigError: one of them is missing, or does not fit the other.
    """
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name).float() for name in _OWN_HEAD if name in tensors.keys()}  # noqa: SIM118 - no mapping
    width = model.config.get_text_config().hidden_size
    wanted = {
        "score.0.weight": (width, width),
        "score.0.bias": (width,),
        "score.2.weight": (1, width),
        "score.2.bias": (1,),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != wanted:
        raise ConfigError(f"the weights in {folder} have a head of {shapes}, and not of {wanted}; download them again")
    first, second = nn.Linear(width, width), nn.Linear(width, 1)
    for layer, number in ((first, 0), (second, 2)):
        layer.load_state_dict({name: found[f"score.{number}.{name}"] for name in ("weight", "bias")})
    head = nn.Sequential(first, nn.ReLU(), second).to(model.get_input_embeddings().weight.device)

    def logits(hidden: torch.Tensor) -> FloatArray:
        return np.asarray(head(hidden.float()).cpu().numpy(), dtype=np.float32)

    return logits
