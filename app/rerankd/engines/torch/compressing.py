"""Runs a Gemma 2 that compresses passages between its layers, as bge-reranker-v2.5-gemma2-lightweight may.

Before some of the layers each run of `ratio` states of a passage becomes its mean, so later layers compute fewer. What
stands before and behind the passage stays as it is, and positions are counted again (BAAI, FlagEmbedding's own code).
"""

from collections.abc import Collection, Sequence
from math import ceil
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from rerankd.engines.base import pad
from rerankd.tasks.encoding import Encoding, PromptEncoding

# Where a row's passage begins and ends, and where the row ends.
_Span = tuple[int, int, int]


class CompressingPrefill:
    """Runs a decoder without its head; `layers` are those before which passages are compressed."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, ratio: int, layers: Collection[int]) -> None:
        self._decoder = model.base_model
        self._pad_id = pad_id
        self._ratio = ratio
        self._layers = frozenset(layers)

    def run(self, encodings: Sequence[Encoding]) -> torch.Tensor:
        """The hidden states of the last positions, shape [rows, hidden size]."""
        device = self._decoder.embed_tokens.weight.device
        ids = torch.from_numpy(pad(encodings, pad_id=self._pad_id).input_ids).to(device)
        hidden, spans = self._decoder.embed_tokens(ids), [_span(encoding) for encoding in encodings]
        places = self._places(hidden, spans)
        for number, (layer, kind) in enumerate(
            zip(self._decoder.layers, self._decoder.config.layer_types, strict=True)
        ):
            if number in self._layers:
                hidden, spans = self._compressed(hidden, spans)
                places = self._places(hidden, spans)
            masks, rotations, positions = places
            hidden = layer(hidden, attention_mask=masks[kind], position_embeddings=rotations, position_ids=positions)
        last = torch.tensor([length - 1 for _, _, length in spans], device=device)
        state: torch.Tensor = self._decoder.norm(hidden[torch.arange(len(spans), device=device), last])
        return state

    def _places(self, hidden: torch.Tensor, spans: Sequence[_Span]) -> tuple[Any, Any, torch.Tensor]:
        """Attention masks by kind of layer, rotations and positions of rows that are padded behind."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        lengths = torch.tensor([length for _, _, length in spans], device=hidden.device)
        seen = {
            "config": self._decoder.config,
            "inputs_embeds": hidden,
            "attention_mask": (positions < lengths[:, None]).long(),
            "past_key_values": None,
            "position_ids": positions,
        }
        masks = {
            "full_attention": create_causal_mask(**seen),
            "sliding_attention": create_sliding_window_causal_mask(**seen),
        }
        return masks, self._decoder.rotary_emb(hidden, positions), positions

    def _compressed(self, hidden: torch.Tensor, spans: Sequence[_Span]) -> tuple[torch.Tensor, list[_Span]]:
        rows = []
        for row, (start, end, length) in zip(hidden, spans, strict=True):
            whole = end - (end - start) % self._ratio
            means = row[start:whole].view(-1, self._ratio, row.shape[-1]).mean(dim=1)
            rest = [row[whole:end].mean(dim=0, keepdim=True)] if whole < end else []
            rows.append(torch.cat([row[:start], means, *rest, row[end:length]]))
        shorter = [
            (start, start + ceil((end - start) / self._ratio), len(row))
            for row, (start, end, _) in zip(rows, spans, strict=True)
        ]
        return pad_sequence(rows, batch_first=True), shorter


def _span(encoding: Encoding) -> _Span:
    """What is no prompt holds no passage."""
    length = len(encoding.ids)
    start, end = encoding.passage if isinstance(encoding, PromptEncoding) else (length, length)
    return start, end, length
