"""The model before training: a bi-encoder and a trust in the first stage, written into the weights of one BERT.

A random model of this size would need days to find out that it should compare passages with the query. This one
computes at its start, in one pass over the prompt, for each passage `cosine_weight * cosine(query, passage) + trust`
of its place, and gives it as the logit of the passage's identifier. Training goes on from there.

- Every token has the bi-encoder's 384 features and 96 more, of which some are marks (`Features`). Its first six layers
  are the bi-encoder's. Their heads see, in 8 more dimensions, which passage a token is of, and look at no other:
  passages lie in slots of `SLOT_TOKENS`, so that the position says it. What fills a slot up is looked at by nobody.
- The bi-encoder's heads look at the first token of a text where they find nothing, and its state is the same in every
  text. So the prompt has one such token, [CLS], which is of no slot and which all see.
- A seventh layer averages each slot, as the bi-encoder averages a text: [SEP] then stands for its passage, and the
  prompt's last token for the query.
- In the eighth the last token looks at every passage's [SEP]. How much, is the sum above; the names of what it sees add
  up in features of their own (`tally`), which the head reads. A little of softmax is nearly linear, so that the order
  is about the sum's.

Layer norms make marks of some tokens larger than those of others. So what is to be seen is marked with nothing, and
what is not to be seen with something, however much of it; and the marks' scales are set from real prompts
(`_keep_marks`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertGenerationConfig, BertGenerationDecoder, PreTrainedTokenizerBase

from models.recipes.minilm_first.prompts import LONGEST_PROMPT, SLOT_TOKENS, WINDOW, Prompt, padded

TEXT, HEADS, HEAD_TEXT, HEAD_SIZE = 384, 12, 32, 40
HIDDEN = HEADS * HEAD_SIZE
# How large a mark is beside text features of about 1: small for a layer norm, large for rounding to int8.
MARK = 0.6
# By how much a logit of attention falls, at the least, for what is not to be seen.
BLIND = 40.0
# How much more than a token's own features its slot's mean weighs.
POOLING = 10.0
# How much of the eighth layer's softmax is used: more is less linear, less is drowned in the marks' differences.
SHARPNESS = 3.0
TALLY = 8.0
_SCALE = HEAD_SIZE**0.5
_HARMONICS = 3
# The codes of two slots differ by this at the least (`place_codes`).
_LEAST_DIFFERENCE = 2.5


class Features:
    """Columns behind those of the text; `zero` holds nothing but what layer norms add to every column."""

    place = slice(TEXT, TEXT + 1 + 2 * _HARMONICS)
    hushed = slice(place.stop, place.stop + 1)
    no_passage = slice(hushed.stop, hushed.stop + 1)
    name = slice(no_passage.stop, no_passage.stop + WINDOW)
    tally = slice(name.stop, name.stop + WINDOW)
    zero = tally.stop


@dataclass(frozen=True)
class Start:
    """What the sum's terms weigh: the cosine, and each place of a window."""

    cosine_weight: float
    trust: Sequence[float]


def starting_config(encoder: nn.Module, tokenizer: PreTrainedTokenizerBase) -> BertGenerationConfig:
    """A BERT as a language model that sees its whole prompt at once: no decoder, which would see what came before."""
    return BertGenerationConfig(
        vocab_size=encoder.config.vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=encoder.config.num_hidden_layers + 2,
        num_attention_heads=HEADS,
        intermediate_size=encoder.config.intermediate_size,
        max_position_embeddings=LONGEST_PROMPT,
        layer_norm_eps=encoder.config.layer_norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        is_decoder=False,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def starting_model(
    encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, start: Start, prompts: Sequence[Prompt]
) -> BertGenerationDecoder:
    """The model; `encoder` is the bi-encoder's BertModel, `prompts` are a few to set the layer norms by."""
    model = BertGenerationDecoder(starting_config(encoder, tokenizer)).eval()
    for parameter in model.parameters():
        parameter.zero_()
    _write_embeddings(model.bert.embeddings, encoder.embeddings, tokenizer)
    *copies, pooling, reading = model.bert.encoder.layer
    for layer, original in zip(copies, encoder.encoder.layer, strict=True):
        _copy_layer(layer, original)
    _write_pooling(pooling)
    _write_reading(reading, start)
    _write_head(model, prompts[0].names)
    _keep_marks(model, prompts)
    return model


def place_codes() -> torch.Tensor:
    """A code for each passage's slot and for the query's: 1, and three harmonics of an angle (see `_difference`)."""
    angles = 2 * torch.pi * torch.arange(WINDOW + 1) / (WINDOW + 1)
    waves = [wave(k * angles) for k in range(1, _HARMONICS + 1) for wave in (torch.cos, torch.sin)]
    return torch.stack([torch.ones(WINDOW + 1), *waves], dim=1)


def _difference() -> torch.Tensor:
    """The bilinear form that is 0 between a code and itself, however long both are, and negative between others."""
    return torch.diag(torch.tensor([-float(_HARMONICS), *[1.0] * (2 * _HARMONICS)]))


def _write_embeddings(ours: nn.Module, theirs: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    words, positions = ours.word_embeddings.weight, ours.position_embeddings.weight
    words[:, :TEXT] = theirs.word_embeddings.weight + theirs.token_type_embeddings.weight[0]
    places = torch.arange(len(positions))
    slots = ((places - 1) // SLOT_TOKENS).clamp(min=0, max=WINDOW)
    positions[:, :TEXT] = theirs.position_embeddings.weight[places - slots * SLOT_TOKENS]
    # What is summed here is small, so the marks must be too.
    mark = MARK * float(words[:, :TEXT].std())
    positions[1:, Features.place] = mark * place_codes()[slots[1:]]
    positions[:, Features.no_passage] = mark
    ends = torch.arange(1, WINDOW + 1) * SLOT_TOKENS
    positions[ends, Features.no_passage] = 0.0
    positions[ends, Features.name] = mark * torch.eye(WINDOW)
    words[[tokenizer.pad_token_id, tokenizer.mask_token_id], Features.hushed] = mark
    _copy_norm(ours.LayerNorm, theirs.LayerNorm)


def _copy_layer(ours: nn.Module, theirs: nn.Module) -> None:
    attention, original = ours.attention.self, theirs.attention.self
    for projection, source, factor in (
        (attention.query, original.query, (HEAD_SIZE / HEAD_TEXT) ** 0.5),
        (attention.key, original.key, 1.0),
        (attention.value, original.value, 1.0),
    ):
        _head_rows(projection.weight)[:, :HEAD_TEXT, :TEXT] = factor * source.weight.view(HEADS, HEAD_TEXT, TEXT)
        _head_rows(projection.bias)[:, :HEAD_TEXT] = factor * source.bias.view(HEADS, HEAD_TEXT)
    _see_own_slot(attention)
    output = theirs.attention.output.dense
    _head_columns(ours.attention.output.dense.weight)[:TEXT, :, :HEAD_TEXT] = output.weight.view(TEXT, HEADS, HEAD_TEXT)
    ours.attention.output.dense.bias[:TEXT] = output.bias
    ours.intermediate.dense.weight[:, :TEXT] = theirs.intermediate.dense.weight
    ours.intermediate.dense.bias.copy_(theirs.intermediate.dense.bias)
    ours.output.dense.weight[:TEXT] = theirs.output.dense.weight
    ours.output.dense.bias[:TEXT] = theirs.output.dense.bias
    _copy_norm(ours.attention.output.LayerNorm, theirs.attention.output.LayerNorm)
    _copy_norm(ours.output.LayerNorm, theirs.output.LayerNorm)


def _write_pooling(layer: nn.Module) -> None:
    """Every token becomes the mean of its slot."""
    attention = layer.attention.self
    _see_own_slot(attention)
    _text_identity(attention.key)
    _text_identity(attention.value)
    for head, rows in _text_rows():
        layer.attention.output.dense.weight[rows, head] = POOLING * torch.eye(HEAD_TEXT)
    _leave_as_it_is(layer)


def _write_reading(layer: nn.Module, start: Start) -> None:
    """Every token sees the passages' [SEP] in shares, and adds up their names."""
    attention = layer.attention.self
    _text_identity(attention.key)
    _text_identity(attention.value)
    _text_identity(attention.query, factor=SHARPNESS * start.cosine_weight * _SCALE / HIDDEN)
    query, key, value = (
        _head_rows(tensor) for tensor in (attention.query.bias, attention.key.weight, attention.value.weight)
    )
    _read_marks(key[:, HEAD_TEXT:-1], Features.place, torch.eye(7))
    query[:, HEAD_TEXT:-1] = _direction_of(start.trust) * SHARPNESS * _SCALE / HEADS
    _hide(attention, Features.no_passage)
    _read_marks(value[:, HEAD_TEXT:], Features.name, torch.eye(WINDOW))
    output = layer.attention.output.dense
    _head_columns(output.weight)[Features.tally, :, HEAD_TEXT:] = TALLY * torch.eye(WINDOW)[:, None, :]
    output.bias[Features.tally] = -TALLY * HEADS / WINDOW
    _leave_as_it_is(layer)


def _direction_of(trust: Sequence[float]) -> torch.Tensor:
    """The vector whose product with every passage's code is nearest to the trust in its place."""
    return torch.linalg.lstsq(place_codes()[:WINDOW], torch.tensor(list(trust))[:, None]).solution[:, 0]


def _write_head(model: BertGenerationDecoder, names: Sequence[int]) -> None:
    # a head's share for a passage is about (1 + SHARPNESS * score / HEADS) / WINDOW, and the heads add up
    model.lm_head.decoder.weight[list(names), Features.tally] = torch.eye(WINDOW) * WINDOW / (TALLY * SHARPNESS)


def _see_own_slot(attention: nn.Module) -> None:
    strength = (BLIND * _SCALE / _LEAST_DIFFERENCE) ** 0.5
    _read_marks(_head_rows(attention.query.weight)[:, HEAD_TEXT:-1], Features.place, strength * _difference())
    _read_marks(_head_rows(attention.key.weight)[:, HEAD_TEXT:-1], Features.place, strength * torch.eye(7))
    _hide(attention, Features.hushed)


def _hide(attention: nn.Module, mark: slice) -> None:
    """Nobody looks at what has this mark."""
    _head_rows(attention.query.bias)[:, -1] = -BLIND * _SCALE
    _read_marks(_head_rows(attention.key.weight)[:, -1:], mark, torch.ones(1, 1))


def _read_marks(rows: torch.Tensor, columns: slice, form: torch.Tensor) -> None:
    rows[..., columns] = form / MARK
    rows[..., Features.zero] = -form.sum(dim=1) / MARK


def _text_identity(projection: nn.Linear, *, factor: float = 1.0) -> None:
    for head, rows in _text_rows():
        projection.weight[head, rows] = factor * torch.eye(HEAD_TEXT)


def _text_rows() -> Iterator[tuple[slice, slice]]:
    """Where a head's text dimensions lie among all heads', and its share of the text's features."""
    for head in range(HEADS):
        yield slice(HEAD_SIZE * head, HEAD_SIZE * head + HEAD_TEXT), slice(HEAD_TEXT * head, HEAD_TEXT * (head + 1))


def _leave_as_it_is(layer: nn.Module) -> None:
    """A feed-forward part that adds nothing yet, but can learn to."""
    generator = torch.Generator().manual_seed(0)
    inner = layer.intermediate.dense.weight
    inner.copy_(torch.randn(inner.shape, generator=generator) * 0.02)
    for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
        norm.weight.fill_(1.0)


def _copy_norm(ours: nn.LayerNorm, theirs: nn.LayerNorm) -> None:
    """The variance is taken over more columns than the text has, and those hold nearly nothing."""
    ours.weight[:TEXT] = theirs.weight * (TEXT / HIDDEN) ** 0.5
    ours.bias[:TEXT] = theirs.bias


def _keep_marks(model: BertGenerationDecoder, prompts: Sequence[Prompt]) -> None:
    """Set the norms' gains of the marks, one norm after the other, so that marks keep their size on these prompts."""
    ids, mask = padded(prompts)
    marked = mask.bool()
    marked[:, 0] = False

    def keep(norm: nn.LayerNorm, inputs: tuple[torch.Tensor]) -> None:
        one = inputs[0][..., Features.place.start] - inputs[0][..., Features.zero]
        norm.weight[TEXT:] = MARK / (one / inputs[0].std(dim=-1))[marked].mean()

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                hooks.callback(module.register_forward_pre_hook(keep).remove)
        model.bert(input_ids=ids, attention_mask=mask)
    for norm in (
        model.bert.encoder.layer[-1].attention.output.LayerNorm,
        model.bert.encoder.layer[-1].output.LayerNorm,
    ):
        norm.weight[Features.tally] = 1.0


def _head_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(HEADS, HEAD_SIZE, *tensor.shape[1:])


def _head_columns(weight: torch.Tensor) -> torch.Tensor:
    return weight.view(weight.shape[0], HEADS, HEAD_SIZE)
