"""Runs encoders without padding: sequences are concatenated in one row, and attention keeps them apart.

The layers of the transformers library run unchanged on one row of all tokens. Only three parts know the sequences: the
positions, which restart with each; the attention, which is registered with transformers; and the head, which reads the
first token (or the mean) of each. On a GPU attention is torch's kernel for sequences of any length
(FlashAttention: Dao et al. 2022, arXiv 2205.14135); elsewhere it is computed a sequence at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from rerankd.domain import IntArray
from rerankd.tasks.encoding import Encoding

ATTENTION: Final = "rerankd-packed"

_HALVES: Final = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """`tokens` has shape [3, all tokens]: ids, positions within the sequence, segments. `bounds` has shape
    [sequences + 1]: where each sequence starts, and where the last one ends.
    """

    tokens: IntArray
    bounds: IntArray
    longest: int


def pack(encodings: Sequence[Encoding]) -> PackedBatch:
    """Concatenate sequences."""
    lengths = [len(encoding.ids) for encoding in encodings]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.zeros((3, bounds[-1]), dtype=np.int64)
    for encoding, start, end in zip(encodings, bounds, bounds[1:], strict=False):
        tokens[0, start:end] = encoding.ids
        tokens[1, start:end] = np.arange(end - start)
        tokens[2, start + encoding.boundary : end] = 1
    return PackedBatch(tokens, bounds, max(lengths))


def can_pack(model: PreTrainedModel) -> bool:
    """Whether a classifier's layers and head are known to work on packed sequences."""
    return model.config.model_type in _HEADS


def logits_of(
    model: PreTrainedModel, tokens: torch.Tensor, bounds: torch.Tensor, *, longest: int, token_types: bool
) -> torch.Tensor:
    """The classifier's logits, shape [sequences, outputs]; the model was loaded with `attention=ATTENTION`.

    `tokens` and `bounds` are those of a `PackedBatch`, on the model's device.
    """
    positions = tokens[1:2] + first_position(model)
    segments = {"token_type_ids": tokens[2:3]} if token_types else {}
    hidden = model.base_model(
        input_ids=tokens[0:1],
        position_ids=positions,
        cu_seq_lens_q=bounds.to(torch.int32),
        max_length_q=longest,
        **segments,
    ).last_hidden_state[0]
    return _HEADS[model.config.model_type](model, hidden, bounds)


def first_position(model: PreTrainedModel) -> int:
    """The position of a sequence's first token: RoBERTa and its relatives start after the padding id."""
    return model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0


def _bert_head(model: PreTrainedModel, hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.classifier(model.base_model.pooler(hidden[bounds[:-1]].unsqueeze(1)))
    return logits


def _roberta_head(model: PreTrainedModel, hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.classifier(hidden[bounds[:-1]].unsqueeze(1))
    return logits


def _modernbert_head(model: PreTrainedModel, hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    pooled = _means(hidden, bounds) if model.config.classifier_pooling == "mean" else hidden[bounds[:-1]]
    logits: torch.Tensor = model.classifier(model.head(pooled))
    return logits


def _means(hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """The mean of every sequence's vectors, shape [sequences, width]."""
    lengths = bounds[1:] - bounds[:-1]
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
    sums = hidden.new_zeros(len(lengths), hidden.shape[-1]).index_add_(0, rows, hidden)
    return sums / lengths.unsqueeze(1)


_HEADS: Final[Mapping[str, Callable[[PreTrainedModel, torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "bert": _bert_head,
    "gte": _bert_head,
    "modernbert": _modernbert_head,
    "roberta": _roberta_head,
    "xlm-roberta": _roberta_head,
}


def _attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_others: Any,  # noqa: ANN401 - what other attentions want to know
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence. Tensors have shape [1, heads, all tokens, width]; the result has
    [1, all tokens, heads, width]. `sliding_window` is one more than the distance to the furthest visible token.
    """
    furthest = -1 if sliding_window is None else sliding_window - 1
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if query.is_cuda and query.dtype in _HALVES:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - older torch has none, and needs none here

        bounds, longest = cu_seq_lens_q, max_length_q
        window = (furthest, furthest)
        mixed = varlen_attn(queries, keys, values, bounds, bounds, longest, longest, scale=scaling, window_size=window)
    else:
        mixed = attend_one_by_one(queries, keys, values, cu_seq_lens_q, scale=scaling, furthest=furthest)
    return mixed.unsqueeze(0), None


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    *,
    scale: float,
    furthest: int,
) -> torch.Tensor:
    """Attention within each sequence; all tensors have shape [all tokens, heads, width]. `furthest` is the
    distance to the furthest visible token on either side; -1 means the whole sequence.
    """
    sizes = bounds.diff().tolist()
    mixed = []
    for parts in zip(*(tensor.split(sizes) for tensor in (query, key, value)), strict=True):
        one, other, third = (part.transpose(0, 1) for part in parts)
        mask = None if furthest < 0 else _band(one.shape[1], furthest, device=query.device)
        mixed.append(scaled_dot_product_attention(one, other, third, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(mixed)


def _band(length: int, furthest: int, *, device: torch.device) -> torch.Tensor:
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None, :]).abs() <= furthest


AttentionInterface.register(ATTENTION, _attention)
