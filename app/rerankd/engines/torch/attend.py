"""PyTorch causal language models whose attention is read: what the end of a prompt looks at.

The documents of a prompt are computed once; their keys and values serve both of its ends. Only for the tokens of an end
are attention weights computed as such, one group of heads at a time, and summed up at once: the memory that they take
grows with the prompt, and not with its square.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any, Final

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits, EngineSpec, task_of
from rerankd.engines.torch.device_memory import within_memory
from rerankd.engines.torch.head_rows import PROBE
from rerankd.engines.torch.positions import stretched_beyond
from rerankd.engines.torch.prefill import Prefill
from rerankd.engines.torch.prefixes import beginnings_stand_alone, has_shareable_layers
from rerankd.engines.torch.weights import (
    LargeWeightsOptions,
    check_adapter,
    check_weights,
    load_language_model,
)
from rerankd.errors import ConfigError
from rerankd.tasks.attend import Attend, AttendedPrompt

_ATTENTION: Final = "rerankd-attend"
_TOLERANCE: Final = 0.03


class TorchAttentionEngine:
    """A `*ForCausalLM` model, of which the head is not computed."""

    def __init__(self, model: PreTrainedModel, *, name: str, pad_id: int, workers: int) -> None:
        self._layers = model.config.get_text_config().num_hidden_layers
        self._prefill = Prefill(model, pad_id=pad_id)
        self.workers = workers
        self.name = name
        _check_attention(model, self._prefill, self._layers)

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchAttentionEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, the device is not there, or its attention cannot be read.
        """
        options = check(spec).model_copy(update={"attention": _ATTENTION})
        model, name, _ = load_language_model(
            spec.folder, options, trust_remote_code=spec.trust_remote_code, adapter=spec.adapter
        )
        return cls(model, name=f"torch-attention/{name}", pad_id=spec.pad_id, workers=spec.workers or 1)

    @property
    def preferred_batch(self) -> BatchLimits:
        # A prompt is a pass of its own.
        return BatchLimits(tokens=32_768, pairs=1)

    @torch.inference_mode()
    def run(self, prompts: Sequence[AttendedPrompt]) -> list[list[FloatArray]]:
        """The attention to each prompt's documents: for each document an array of shape [2, tokens].

        Raises:
            OutOfMemory: a prompt does not fit the device's memory.
        """
        return within_memory(lambda: [self._attention(prompt) for prompt in prompts])

    def _attention(self, prompt: AttendedPrompt) -> list[FloatArray]:
        _, states = self._prefill.run([()], [prompt.ids], keep=True)
        masses = []
        for end in (prompt.question, prompt.calibration):
            with _recording(tokens=len(prompt.ids)) as recorded:
                self._prefill.run([states], [end])
            masses.append(recorded.mean())
        both = np.stack(masses)
        return [both[:, start:end].copy() for start, end in prompt.spans.tolist()]


def check(spec: EngineSpec) -> LargeWeightsOptions:
    """The options.

    Raises:
        ConfigError: an option or the folder does not fit. The weights are not read.
    """
    options = read_options(spec.options, LargeWeightsOptions, of="engine 'torch-attention'")
    task_of(spec, Attend)
    if options.attention is not None:
        raise ConfigError("engine 'torch-attention' computes attention by itself; leave `attention` out")
    check_weights("causal language model", spec.folder, options, trust_remote_code=spec.trust_remote_code)
    check_adapter(spec.adapter, options, trust_remote_code=spec.trust_remote_code)
    return options


class _Recorded:
    """The attention to a pass's first `tokens`, summed over rows, heads and layers."""

    def __init__(self, *, tokens: int) -> None:
        self._tokens = tokens
        self._sum = np.zeros(tokens, dtype=np.float64)
        self._rows = 1
        self.layers = 0

    def add(self, mass: torch.Tensor, *, rows: int) -> None:
        """One layer's, shape [all tokens]."""
        self._sum += mass[: self._tokens].double().cpu().numpy()
        self._rows = rows
        self.layers += 1

    def mean(self) -> FloatArray:
        """Shape [tokens]."""
        mean: FloatArray = (self._sum / self._rows).astype(np.float32)
        return mean


_PASS: Final = local()


@contextmanager
def _recording(*, tokens: int) -> Iterator[_Recorded]:
    """Record the attention of this thread's passes."""
    _PASS.recorded = _Recorded(tokens=tokens)
    try:
        yield _PASS.recorded
    finally:
        _PASS.recorded = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **others: Any,  # noqa: ANN401 - what other attentions want to know
) -> tuple[torch.Tensor, None]:
    """Tensors have shape [1, heads, tokens, width], `mask` [1, 1, rows, tokens], the result [1, rows, heads, width].

    A group of heads shares its keys. Its weights have shape [heads of the group, rows, tokens].
    """
    recorded: _Recorded | None = getattr(_PASS, "recorded", None)
    if recorded is None:
        mixed, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **others)
        return mixed, None
    _, heads, rows, width = query.shape
    _, groups, tokens, _ = key.shape
    if mask is None:
        places = torch.arange(tokens, device=query.device)
        mask = (places <= places[tokens - rows :, None])[None, None]
    scale = width**-0.5 if scaling is None else scaling
    size = heads // groups
    mass = torch.zeros(tokens, device=query.device)
    parts = []
    for group in range(groups):
        scores = query[0, group * size : (group + 1) * size] @ key[0, group].T * scale
        scores = scores.masked_fill(~mask[0], -torch.inf) if mask.dtype == torch.bool else scores + mask[0]
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
        mass += weights.sum(dim=(0, 1))
        parts.append(weights.to(value.dtype) @ value[0, group])
    recorded.add(mass, rows=rows)
    return torch.cat(parts).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


@torch.inference_mode()
def _check_attention(model: PreTrainedModel, prefill: Prefill, layers: int) -> None:
    """Check that all layers compute their attention here, as they would elsewhere.

    Raises:
        ConfigError: they do not.
    """
    config = model.config.get_text_config()
    plain = getattr(type(model), "_supports_sdpa", True) and not getattr(config, "attn_logit_softcapping", None)
    if not plain or stretched_beyond(model) is not None or not has_shareable_layers(model):
        raise _other_attention(model)
    if not beginnings_stand_alone(prefill):
        raise ConfigError(
            "tokens of this model see what follows them; scorer 'attention' needs a causal language model"
        )
    ids: IntArray = PROBE
    usual, _ = prefill.run([()], [ids])
    with _recording(tokens=len(ids)) as recorded:
        ours, _ = prefill.run([()], [ids])
    scale = max(1.0, float(usual.abs().max()))
    if recorded.layers != layers or not torch.allclose(ours.float(), usual.float(), atol=_TOLERANCE * scale):
        raise _other_attention(model)


def _other_attention(model: PreTrainedModel) -> ConfigError:
    return ConfigError(
        f"the attention of a {model.config.model_type!r} model is more than a softmax, and cannot be read; "
        "use a Llama, Mistral or Qwen"
    )
