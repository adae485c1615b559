"""How many floating-point operations a model needs for sequences of given lengths. Counts what the model is, not what
an implementation does: padding, and attention outside of a local window, count nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from transformers import PreTrainedModel

# These see one vector a sequence.
_HEADS = ("classifier", "head", "score")


@dataclass(frozen=True, slots=True)
class Operations:
    """`weights` are those of the layers that every token passes; `spans` is how far each layer's attention reaches."""

    weights: int
    width: int
    spans: Sequence[int]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        linear = [
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.startswith(_HEADS) and "pooler" not in name
        ]
        return cls(weights=sum(linear), width=model.config.hidden_size, spans=_spans(model))

    def needed(self, lengths: Sequence[int]) -> float:
        """Two for each weight and token; in attention, four times the width for each pair of tokens."""
        total = 0.0
        for length in lengths:
            pairs = sum(length * min(length, span) for span in self.spans)
            total += 2.0 * self.weights * length + 4.0 * self.width * pairs
        return total


def _spans(model: PreTrainedModel) -> list[int]:
    """ModernBERT reads globally in one layer of a few and within a window in the others."""
    config = model.config
    everywhere = int(config.max_position_embeddings)
    every, window = getattr(config, "global_attn_every_n_layers", 1), getattr(config, "local_attention", everywhere)
    return [everywhere if layer % every == 0 else int(window) for layer in range(config.num_hidden_layers)]
