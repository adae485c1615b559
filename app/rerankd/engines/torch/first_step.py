"""The first step of T5's decoder, without the keys and values of what the encoder read.

One token attends to the whole prompt. Since q K^T = (q W_K) H^T and a V = (a H) W_V, the two projections are applied to
the one token and not to the states H of all tokens. That saves a tenth of a pass.
"""

from typing import Any

import torch
from transformers import PreTrainedModel


def has_plain_steps(model: PreTrainedModel) -> bool:
    """Whether a model's decoder is T5's, on one device and with weights that are plain numbers.

    In float16 T5 cuts off infinities, which is not done here.
    """
    blocks = getattr(model.get_decoder(), "block", None)
    if not blocks or getattr(model, "hf_device_map", None):
        return False
    return all(block.layer[1].EncDecAttention.k.weight.dtype in (torch.float32, torch.bfloat16) for block in blocks)


def first_states(decoder: Any, start: torch.Tensor, read: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - T5's and mT5's have no common class
    """What the decoder gives for the first token of its answers.

    Args:
        decoder: the decoder.
        start: the token behind which it begins to write, shape [1].
        read: what the encoder gave, shape [sequences, tokens, hidden size].
        mask: 1 for tokens, 0 for padding, shape [sequences, tokens].

    Returns:
        States of shape [sequences, hidden size].
    """
    hidden = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, -torch.inf)[:, None]
    states = decoder.embed_tokens(start).expand(len(read), -1)
    for block in decoder.block:
        own, cross, feed_forward = block.layer
        # A single token attends to itself alone.
        states = states + own.SelfAttention.o(own.SelfAttention.v(own.layer_norm(states)))
        states = states + _attended(cross.EncDecAttention, cross.layer_norm(states), read, hidden)
        states = feed_forward(states)
    final: torch.Tensor = decoder.final_layer_norm(states)
    return final


def _attended(attention: Any, states: torch.Tensor, read: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - as above
    """Attention of one token of each sequence to what was read; T5 does not scale it."""
    shape = attention.n_heads, attention.key_value_proj_dim, -1
    query = attention.q(states).view(len(states), *shape[:2])
    asked = torch.einsum("bhd,hdm->bhm", query, attention.k.weight.view(shape))
    weights = torch.softmax((asked @ read.transpose(1, 2)).float() + hidden, dim=-1).to(read.dtype)
    values = torch.einsum("bhm,hdm->bhd", weights @ read, attention.v.weight.view(shape))
    attended: torch.Tensor = attention.o(values.flatten(1))
    return attended
