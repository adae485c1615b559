"""The rows of a language model's head that a scorer reads: the full vocabulary is never computed.

They are multiplied in float32: in bfloat16 twenty logits near 15 share about 14 values, so that some are tied.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from rerankd.domain import FloatArray
from rerankd.errors import ConfigError


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

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of shape [rows, tokens] from hidden states of shape [rows, hidden size]."""
        logits = torch.nn.functional.linear(hidden.float(), self._rows.to(hidden.device), self._bias) * self._factor
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def __call__(self, hidden: torch.Tensor) -> FloatArray:
        return np.asarray(self.logits(hidden).cpu().numpy(), dtype=np.float32)
