"""One pass of a decoder over the remaining tokens of prompts, after cached keys and values of their prefixes.

Pasts are aligned at their ends and the remaining tokens at their beginnings, so that the real tokens of a row are
contiguous and sliding windows stay correct.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from rerankd.domain import IntArray
from rerankd.errors import ConfigError

# One layer's keys and values, each of shape [1, heads, tokens, head size].
LayerStates = tuple[torch.Tensor, torch.Tensor]
# Those of all layers; empty without a prefix.
States = Sequence[LayerStates]
NOTHING: Final[Mapping[str, torch.Tensor]] = {}


class Prefill:
    """Runs a model without its head.

    Raises:
        ConfigError: the model has no decoder that runs without one.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int) -> None:
        # A model without a head is its own decoder.
        self._decoder = model.base_model if model.get_output_embeddings() is not None else model
        # transformers returns the model itself if it has no part below the head, as for Llama 4.
        if self._decoder is model and model.get_output_embeddings() is not None:
            raise ConfigError(
                f"model_type {model.config.model_type!r} is not supported by engine 'torch-causal': transformers has "
                f'no {type(model).__name__} without its head; let it write orders (scorer = "generative" with engine = '
                '"torch-generate" or "endpoint"), or use a plain causal language model'
            )
        self.device: torch.device = model.get_input_embeddings().weight.device
        self._pad_id = pad_id

    def run(
        self,
        past: Sequence[States],
        rests: Sequence[IntArray],
        *,
        keep: bool = False,
        besides: Mapping[str, torch.Tensor] = NOTHING,
    ) -> tuple[torch.Tensor, States]:
        """Compute the tokens that follow each past. `besides` are other inputs of the model, and positions if they are
        not those of a text.

        Returns:
            The hidden states of the last positions, shape [rows, hidden size], and with `keep` all layers' keys and
            values, each of shape [rows, heads, longest past + longest rest, head size].
        """
        before = [_tokens(states) for states in past]
        longest = max(before)
        cache = _filled_cache(past, longest) if longest else DynamicCache() if keep else None
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in self._inputs(before, rests).items()}
        output = self._decoder(
            **{**inputs, **besides},
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden = output.last_hidden_state
        last = torch.tensor([len(rest) - 1 for rest in rests], device=hidden.device)
        rows = torch.arange(len(rests), device=hidden.device)
        return hidden[rows, last], list(_layers(cache)) if keep else ()

    def _inputs(self, before: Sequence[int], rests: Sequence[IntArray]) -> dict[str, IntArray]:
        longest_past, longest_rest = max(before), max(map(len, rests))
        ids = np.full((len(rests), longest_rest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rests), longest_past + longest_rest), dtype=np.int64)
        for row, (rest, start) in enumerate(zip(rests, before, strict=True)):
            ids[row, : len(rest)] = rest
            mask[row, longest_past - start : longest_past + len(rest)] = 1
        positions = np.array(before)[:, None] + np.arange(longest_rest)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def _tokens(states: States) -> int:
    return states[0][0].shape[2] if states else 0


def _filled_cache(past: Sequence[States], longest: int) -> DynamicCache:
    """A cache of these pasts, aligned at their ends. Positions before a shorter past are masked."""
    filled = next(states for states in past if states)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(filled):
        cache.update(
            _aligned([states[layer][0] if states else None for states in past], keys, longest),
            _aligned([states[layer][1] if states else None for states in past], values, longest),
            layer,
        )
    return cache


def _aligned(pasts: Sequence[torch.Tensor | None], like: torch.Tensor, longest: int) -> torch.Tensor:
    _, heads, _, size = like.shape
    if all(past is like for past in pasts):
        return like.expand(len(pasts), heads, longest, size)
    rows = like.new_zeros((len(pasts), heads, longest, size))
    for row, past in enumerate(pasts):
        if past is not None:
            rows[row, :, longest - past.shape[2] :] = past[0]
    return rows


def _layers(cache: DynamicCache) -> Iterator[LayerStates]:
    for layer in cache.layers:
        yield layer.keys, layer.values
