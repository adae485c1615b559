"""The rows of a language model's head that a scorer reads: the full vocabulary is never computed.

They are multiplied in float32: in bfloat16 twenty logits near 15 share about 14 values, so that some are tied.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedModel

from rerankd.domain import FloatArray
from rerankd.engines.torch.weights import Precision
from rerankd.errors import ConfigError

# What a head is tried with.
PROBE: Final = np.arange(3, 11, dtype=np.int64)
# Tolerance between our rows of the head and the model's own logits, relative to the largest logit.
_TOLERANCE: Final[Mapping[Precision, float]] = {"float32": 1e-4, "bfloat16": 0.03, "float16": 0.01}


class HeadRows:
    """The rows that belong to a few tokens, in float32, as the model applies them."""

    def __init__(self, model: PreTrainedModel, tokens: Sequence[int]) -> None:
        head = model.get_output_embeddings()
        if not head.weight.is_floating_point():
            raise ConfigError("this model's head is stored as integers; single rows cannot be read")
        if max(tokens) >= head.weight.shape[0]:
            raise ConfigError(f"the scorer reads token {max(tokens)}, the model's head has {head.weight.shape[0]} rows")
        config = model.config.get_text_config()
        self.tokens = tuple(tokens)
        index = torch.tensor(self.tokens, device=head.weight.device)
        self._rows = head.weight.detach()[index].float()
        bias = getattr(head, "bias", None)
        self._bias = None if bias is None else bias.detach()[index].float()
        # Gemma 2 soft-caps its logits; Cohere multiplies and Granite divides them.
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._factor = float(getattr(config, "logit_scale", None) or 1.0)
        self._factor /= float(getattr(config, "logits_scaling", None) or 1.0)
        # T5 scales what its decoder gives, unless its head was trained apart from its embeddings (T5 1.1).
        if getattr(config, "scale_decoder_outputs", False):
            self._factor *= float(config.d_model**-0.5)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of shape [rows, tokens] from hidden states of shape [rows, hidden size]."""
        logits = torch.nn.functional.linear(hidden.float(), self._rows.to(hidden.device), self._bias) * self._factor
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def __call__(self, hidden: torch.Tensor) -> FloatArray:
        return np.asarray(self.logits(hidden).cpu().numpy(), dtype=np.float32)

    def check(self, ours: FloatArray, whole: torch.Tensor, *, precision: Precision, engine: str) -> None:
        """Compare what we read of `PROBE`, shape [tokens], with the model's own logits, shape [vocabulary].

        Raises:
            ConfigError: the model's head does more than multiply.
        """
        wanted = whole.float().cpu().numpy()[list(self.tokens)]
        difference = float(np.abs(ours - wanted).max())
        if not difference <= _TOLERANCE[precision] * max(1.0, float(np.abs(wanted).max())):
            raise ConfigError(
                f"rows of this model's head differ from its own logits by {difference:.3g}: its head does more than "
                f"multiply; this kind of model is not supported by engine {engine!r}"
            )
