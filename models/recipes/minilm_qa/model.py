"""The cross-encoder: how it starts, and how it scores texts outside of training."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import gelu, softmax
from tqdm import tqdm
from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

from models.recipes.minilm_qa.encoding import MAX_QUERY_TOKENS, PairEncoder, length_batches, padded, token_ids
from models.recipes.minilm_qa.teacher import start_weights

TOKENS_PER_BATCH = 4096


def new_model() -> BertForSequenceClassification:
    """Return the bi-encoder's layers under a fresh head.

    The pooler starts as the identity: its published weights were never trained. There is no dropout: on a CPU it
    costs a third of the speed, and one pass over the data does not overfit. The word vectors stay as they are, so
    that words which training does not show keep their place.
    """
    model: BertForSequenceClassification = BertForSequenceClassification.from_pretrained(
        start_weights(), num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, dtype=torch.float32
    )
    with torch.no_grad():
        pooler = model.bert.pooler.dense
        pooler.weight.copy_(torch.eye(pooler.out_features))
        pooler.bias.zero_()
    freeze_words(model)
    return model


def freeze_words(model: BertForSequenceClassification) -> None:
    """Keep the word vectors out of training; to be said again for a model read from a checkpoint."""
    model.bert.embeddings.word_embeddings.weight.requires_grad_(requires_grad=False)


class ClsOnlyCrossEncoder(nn.Module):
    """The same logits as the model's own forward, for a seventh less work.

    Of the last layer, only the [CLS] row is read, so its query, its attention and its feed-forward part are
    computed for that row alone. Attention is written out, because on a CPU the fused kernel's backward pass
    over a masked batch is slower.
    """

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self._bert, self._classifier = model.bert, model.classifier
        self._heads = model.config.num_attention_heads

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        hidden = self._bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        bias = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        *layers, last = self._bert.encoder.layer
        for layer in layers:
            hidden = self._layer(layer, hidden, hidden, bias)
        cls = self._layer(last, hidden[:, :1], hidden, bias)
        logits: torch.Tensor = self._classifier(self._bert.pooler(cls))
        return logits

    def _layer(self, layer: nn.Module, rows: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for `rows`, which attend to all of `hidden`."""
        attention = layer.attention.self
        query = self._split(attention.query(rows))
        key, value = self._split(attention.key(hidden)), self._split(attention.value(hidden))
        weights = softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias, dim=-1)
        context = (weights @ value).transpose(1, 2).flatten(2)
        attended = layer.attention.output(context, rows)
        output: torch.Tensor = layer.output(gelu(layer.intermediate.dense(attended)), attended)
        return output

    def _split(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (self._heads, -1)).transpose(1, 2)


@torch.inference_mode()
def score_pairs(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_tokens: int = 512,
    bfloat16: bool = False,
    progress: str | None = None,
) -> torch.Tensor:
    """Return the logits of (query, document) pairs in their order, as float32 on the CPU."""
    device = next(model.parameters()).device
    encoder, forward = PairEncoder(tokenizer), ClsOnlyCrossEncoder(model)
    queries = token_ids(tokenizer, [query for query, _ in pairs], max_tokens=MAX_QUERY_TOKENS)
    documents = token_ids(tokenizer, [document for _, document in pairs], max_tokens=max_tokens)
    rows = [encoder.pair(q, d, max_tokens=max_tokens) for q, d in zip(queries, documents, strict=True)]
    logits = torch.zeros(len(rows))
    with tqdm(total=len(rows), desc=progress, unit="pair", disable=progress is None, mininterval=5) as bar:
        for batch in length_batches([len(row) for row, _ in rows], tokens_per_batch=TOKENS_PER_BATCH):
            inputs = padded([rows[position] for position in batch], device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
                scored = forward(**inputs)[:, 0]
            logits[batch] = scored.float().cpu()
            bar.update(len(batch))
    return logits
