"""The cross-encoder: what it computes, how it starts, and how it scores texts outside of training.

It begins as the sum of two rankers that are good already, and learns what they miss. One pass of one BERT yields:

- the query alone and the document alone, as the bi-encoder saw them: the cosine of their mean token vectors;
- the query once more, reading the document: its tokens attend to the document's in every layer. The document does not
  attend to the query, so that it is encoded once for both (as in PreTTR, MacAvaney et al. 2020, arXiv 2004.14255);
- BM25 of stemmed words, counted on the token ids (a score that helps cross-encoders when it is fed to them: Askari et
  al. 2023, arXiv 2301.09728), each query word weighted by its token's vector (DeepCT, Dai and Callan 2019, arXiv
  1910.10687), and the same words matched softly, by their vectors (ColBERT, Khattab and Zaharia 2020, arXiv
  2004.12832).

A small head adds them up. At the start it takes the cosine and BM25 alone, which rank better together than either.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu, normalize, softmax
from tqdm import tqdm
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from rerankd.tools.training.encoding import MAX_QUERY_TOKENS, PairEncoder, length_batches, padded, token_ids
from rerankd.tools.training.lexical import K1, B
from rerankd.tools.training.lexical_tables import LexicalTables
from rerankd.tools.training.precision import in_bfloat16

TOKENS_PER_BATCH = 2048
# the scale that the bi-encoder was trained with, and what half of BM25 adds to it
COSINE_SCALE = 20.0
BM25_WEIGHT = 0.5
HEAD_SIZE = 128
# where the sum of the two parts the training groups' relevant texts from the others
START_BIAS = -20.0
# brings similarities to the size of logits
SIMILARITY_SCALE = 10.0
# what attention may not see weighs e^-64 at most, which no float32 sum notices; with -inf or the least float, runtimes
# compute denormal weights, and those are slow (a tenth of a pass in ONNX Runtime on x86)
UNSEEN = -64.0

ALONE, DOCUMENT, READING = 1, 2, 3


class Columns(NamedTuple):
    """The sequence that BERT sees, [batch, columns] each: the query, the query again, [CLS] and the document.

    `part` tells what a column is: of the query ALONE, of the query READING the document, of the DOCUMENT, or 0 for
    padding. `reading`, [batch, 1], is where the second query begins; `width` is the length of the longest query.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor
    part: torch.Tensor
    reading: torch.Tensor
    width: int


class CrossEncoder(nn.Module):
    """Maps `input_ids`, `attention_mask` and `token_type_ids` of [batch, tokens] to logits of [batch, 1].

    There is no dropout: on a CPU it costs a third of the speed, and one pass over the data does not overfit. The word
    vectors stay as they are, so that words which training does not show keep their place.
    """

    SIGNALS = ("cosine", "BM25", "soft match", "share of the query's words that match")

    def __init__(self, config: BertConfig, tables: LexicalTables | None = None) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)
        self.bert.embeddings.word_embeddings.weight.requires_grad_(requires_grad=False)
        self.word_weight = nn.Linear(config.hidden_size, 1)
        self.hidden = nn.Linear(3 * config.hidden_size + len(self.SIGNALS), HEAD_SIZE)
        self.classifier = nn.Linear(len(self.SIGNALS) + HEAD_SIZE, 1)
        with torch.no_grad():
            for layer in (self.word_weight, self.classifier):
                layer.weight.zero_()
                layer.bias.zero_()
            self.classifier.weight[0, :2] = torch.tensor([1.0, BM25_WEIGHT])
            self.classifier.bias.fill_(START_BIAS)
        words = tables or LexicalTables.empty(config.vocab_size)
        for name, value in words._asdict().items():
            self.register_buffer(name, value)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        logits, _, _ = self.logits_and_states(input_ids, attention_mask, token_type_ids)
        return logits

    def logits_and_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the logits, BERT's last states of [batch, columns, size], and which columns are no padding."""
        columns = lay_out(input_ids, attention_mask, token_type_ids)
        states = self._encode(columns)
        with torch.autocast(input_ids.device.type, enabled=False):
            return self._head(columns, states.float()), states, columns.part > 0

    def _head(self, columns: Columns, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.head_inputs(columns, states))
        return logits

    def head_inputs(self, columns: Columns, states: torch.Tensor) -> torch.Tensor:
        """Return what the classifier adds up, [batch, signals and hidden units]; `states` are BERT's last."""
        query, document, reading = (_mean(states, columns.part == part) for part in (ALONE, DOCUMENT, READING))
        query, document = normalize(query), normalize(document)
        signals = torch.stack(
            [COSINE_SCALE * (query * document).sum(dim=1), *self._word_signals(columns, states)], dim=1
        )
        read = states.gather(1, columns.reading[:, :, None].expand(-1, 1, states.shape[2]))[:, 0]
        seen = torch.cat([read, reading, COSINE_SCALE * query * document, signals / SIMILARITY_SCALE], dim=1)
        return torch.cat([signals, gelu(self.hidden(seen))], dim=1)

    def _encode(self, columns: Columns) -> torch.Tensor:
        """Return BERT's last states, [batch, columns, size].

        Attention is written out, because on a CPU the fused kernel's backward pass over a masked batch is slower.
        Padding sees nothing, so that a runtime can tell that it is padding.
        """
        hidden = self.embed(columns.ids, columns.positions, columns.types)
        rows, seen = columns.part[:, :, None], columns.part[:, None, :]
        visible = ((rows == seen) & (seen > 0)) | ((rows == READING) & (seen == DOCUMENT))
        bias = torch.where(visible, 0.0, UNSEEN)[:, None]
        for layer in self.bert.encoder.layer:
            hidden = self._layer(layer, hidden, bias)
        return hidden

    def _layer(self, layer: nn.Module, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = self.projections(layer, hidden)
        weights = softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias, dim=-1)
        return self.after_attention(layer, weights.to(value.dtype) @ value, hidden)

    def embed(self, ids: torch.Tensor, positions: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """Return what the first layer reads, [batch, columns, size]."""
        embeddings = self.bert.embeddings
        hidden = embeddings.word_embeddings(ids) + embeddings.position_embeddings(positions)
        normed: torch.Tensor = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings(types))
        return normed

    def projections(self, layer: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return a layer's queries, keys and values, [batch, heads, columns, size of a head] each."""
        attention = layer.attention.self
        query, key, value = (self._split(part(hidden)) for part in (attention.query, attention.key, attention.value))
        return query, key, value

    def after_attention(self, layer: nn.Module, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return a layer's states, given what its heads gathered, shaped as the queries, and the layer's input."""
        gathered = layer.attention.output(attended.transpose(1, 2).flatten(2), hidden)
        output: torch.Tensor = layer.output(gelu(layer.intermediate.dense(gathered)), gathered)
        return output

    def _split(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)

    def _word_signals(self, columns: Columns, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return BM25, the soft match and the share of the query's words that match, [batch] each."""
        ids, part, width = columns.ids, columns.part, columns.width
        starts = self.starts[ids]
        number = starts.cumsum(dim=1)
        same_word = (number[:, :, None] == number[:, None, :]).float()
        codes = (same_word @ self.codes[ids][:, :, None])[:, :, 0]
        rarity = (same_word @ self.rarities[ids][:, :, None])[:, :width, 0].minimum(self.rarest)
        in_query, in_document = starts[:, :width] * (part[:, :width] == ALONE), starts * (part == DOCUMENT)
        matches = (codes[:, :width, None] == codes[:, None, :]).float()
        count = (matches @ in_document[:, :, None])[:, :, 0]
        repeats = (matches[:, :, :width] @ in_query[:, :, None])[:, :, 0].clamp(min=1.0)
        weights = in_query * rarity / repeats * 2.0 * self.word_weight(states[:, :width]).sigmoid()[:, :, 0]
        room = K1 * (1.0 - B + B * in_document.sum(dim=1, keepdim=True) / self.mean_words)
        bm25 = (weights * count * (K1 + 1.0) / (count + room)).sum(dim=1)
        shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
        units = normalize(states, dim=2)
        likeness = units[:, :width] @ units.transpose(1, 2)
        nearest = likeness.masked_fill((part != DOCUMENT)[:, None, :], -1.0).amax(dim=2)
        soft, share = (shares * nearest).sum(dim=1), (shares * (count > 0)).sum(dim=1)
        return bm25, SIMILARITY_SCALE * soft, SIMILARITY_SCALE * share


def lay_out(input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Columns:
    """Return the columns for a batch of pairs, `[CLS] query [SEP] document [SEP]` each, padded on the right.

    Padding stays last, so that what a row's sums add up, and in which order, does not depend on its batch.
    """
    query = (attention_mask * (1 - token_type_ids)).sum(dim=1, keepdim=True)
    both = attention_mask.sum(dim=1, keepdim=True)
    tokens = input_ids.shape[1]
    width = _number(query.max(), at_most=tokens)
    numbers = torch.arange(tokens + width + 1, device=input_ids.device).expand(input_ids.shape[0], -1)
    reading, document = (numbers >= query) & (numbers < 2 * query), numbers >= 2 * query
    positions = numbers - query * (reading.long() + 2 * document.long())
    source = torch.where(document & (positions > 0), positions + query - 1, torch.where(document, 0, positions))
    part = torch.where(document, DOCUMENT, torch.where(reading, READING, ALONE))
    return Columns(
        ids=input_ids.gather(1, source.clamp(max=tokens - 1)),
        positions=positions.clamp(max=tokens - 1),
        types=reading.long(),
        part=torch.where(numbers < both + query + 1, part, 0),
        reading=query,
        width=width,
    )


def _number(value: torch.Tensor, *, at_most: int) -> int:
    """Return an integer tensor's value, with what the exporter cannot know of it."""
    number: int = value.item()
    torch._check(number >= 2)  # noqa: SLF001 - the exporter's documented way to be told
    torch._check(number <= at_most)  # noqa: SLF001 - as above
    return number


def _mean(states: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    weights = chosen.to(states.dtype)[:, :, None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def save_model(model: CrossEncoder, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def load_model(folder: Path) -> CrossEncoder:
    """Read what `save_model` wrote."""
    model = CrossEncoder(new_config(folder))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def new_config(folder: Path) -> BertConfig:
    """Return the configuration in a folder, without dropout and with one output."""
    config: BertConfig = BertConfig.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=1
    )
    return config


@torch.inference_mode()
def score_pairs(
    model: CrossEncoder,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_tokens: int = 512,
    bfloat16: bool = False,
    progress: str | None = None,
) -> torch.Tensor:
    """Return the logits of (query, document) pairs in their order, as float32 on the CPU."""
    device = next(model.parameters()).device
    encoder = PairEncoder(tokenizer)
    queries = token_ids(tokenizer, [query for query, _ in pairs], max_tokens=MAX_QUERY_TOKENS)
    documents = token_ids(tokenizer, [document for _, document in pairs], max_tokens=max_tokens)
    rows = [encoder.pair(q, d, max_tokens=max_tokens) for q, d in zip(queries, documents, strict=True)]
    logits = torch.zeros(len(rows))
    with tqdm(total=len(rows), desc=progress, unit="pair", disable=progress is None, mininterval=5) as bar:
        for batch in length_batches([len(row) for row, _ in rows], tokens_per_batch=TOKENS_PER_BATCH):
            inputs = padded([rows[position] for position in batch], device)
            with in_bfloat16(device) if bfloat16 else nullcontext():
                scored = model(**inputs)[:, 0]
            logits[batch] = scored.float().cpu()
            bar.update(len(batch))
    return logits
