"""Scores each query of a block with each of its documents, in one pass that can be trained through.

`shared_texts.py` does the same for whole evaluation sets, without gradients and one document at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import softmax
from torch.nn.utils.rnn import pad_sequence

from rerankd.tools.training.encoding import padded
from rerankd.tools.training.model import UNSEEN, Columns, CrossEncoder, lay_out

# A layer's keys and values, [texts, heads, tokens, size of a head] each.
KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class Texts(NamedTuple):
    """Texts as BERT reads them alone: ids and which of them are no padding, [texts, tokens] each."""

    ids: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Texts":
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return cls(ids, torch.arange(ids.shape[1]) < lengths[:, None])

    def to(self, device: torch.device) -> "Texts":
        return Texts(self.ids.to(device), self.real.to(device))

    @property
    def bias(self) -> torch.Tensor:
        """What attention adds where it looks at these texts, [texts, 1, 1, tokens]."""
        return torch.where(self.real, 0.0, UNSEEN)[:, None, None]


class EncodedBlock(NamedTuple):
    """A block's texts with their last states, [texts, tokens, size], and those of each query that reads each document,
    [documents, queries, tokens of a query, size].
    """

    queries: Texts
    query_states: torch.Tensor
    documents: Texts
    document_states: torch.Tensor
    reading_states: torch.Tensor

    @property
    def states(self) -> list[torch.Tensor]:
        """The last states of all tokens that are no padding, [tokens, size]: of queries, documents, and readers."""
        readers = self.queries.real.expand(self.reading_states.shape[:-1])
        return [
            self.query_states[self.queries.real],
            self.document_states[self.documents.real],
            self.reading_states[readers],
        ]


def encode(model: CrossEncoder, queries: Sequence[Sequence[int]], documents: Sequence[Sequence[int]]) -> EncodedBlock:
    """Encode queries and documents, `[CLS] text [SEP]` each: alone, and each query as it reads each document."""
    device = model.classifier.weight.device
    query_texts, document_texts = Texts.of(queries).to(device), Texts.of(documents).to(device)
    query_states, _ = _alone(model, query_texts)
    document_states, seen = _alone(model, document_texts)
    reading_states = _read(model, query_texts, document_texts, seen)
    return EncodedBlock(query_texts, query_states, document_texts, document_states, reading_states)


def logits(model: CrossEncoder, block: EncodedBlock) -> torch.Tensor:
    """Return the logits, [queries, documents]."""
    device = block.queries.ids.device
    with torch.autocast(device.type, enabled=False):
        of_pairs: torch.Tensor = model.classifier(model.head_inputs(*_laid_out(block)))
    return of_pairs[:, 0].unflatten(0, (len(block.queries.ids), len(block.documents.ids)))


def _alone(model: CrossEncoder, texts: Texts) -> tuple[torch.Tensor, list[KeysAndValues]]:
    hidden = model.embed(texts.ids, _positions(texts.ids), torch.zeros_like(texts.ids))
    seen = []
    for layer in model.bert.encoder.layer:
        query, key, value = model.projections(layer, hidden)
        seen.append((key, value))
        weights = softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + texts.bias, dim=-1)
        hidden = model.after_attention(layer, weights.to(value.dtype) @ value, hidden)
    return hidden, seen


def _read(model: CrossEncoder, queries: Texts, documents: Texts, of_documents: Sequence[KeysAndValues]) -> torch.Tensor:
    """Return the last states of the queries that read: [documents, queries, tokens of a query, size]."""
    count, width = queries.ids.shape
    hidden = model.embed(queries.ids, _positions(queries.ids), torch.ones_like(queries.ids))
    hidden = hidden.repeat(len(documents.ids), 1, 1)
    own_bias = queries.bias.repeat(len(documents.ids), 1, 1, 1)
    for layer, (document_key, document_value) in zip(model.bert.encoder.layer, of_documents, strict=True):
        query, key, value = model.projections(layer, hidden)
        own = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + own_bias
        together = _by_document(query, count)
        others = together @ document_key.transpose(-1, -2) * query.shape[-1] ** -0.5 + documents.bias
        seen = torch.cat([own, _by_query(others, count)], dim=-1)
        to_own, to_document = softmax(seen, dim=-1).to(value.dtype).split([width, documents.ids.shape[1]], dim=-1)
        gathered = _by_query(_by_document(to_document, count) @ document_value, count)
        hidden = model.after_attention(layer, to_own @ value + gathered, hidden)
    return hidden.unflatten(0, (len(documents.ids), count))


def _by_document(tensor: torch.Tensor, queries: int) -> torch.Tensor:
    """[documents * queries, heads, tokens, x] -> [documents, heads, queries * tokens, x]."""
    return tensor.unflatten(0, (-1, queries)).transpose(1, 2).flatten(2, 3)


def _by_query(tensor: torch.Tensor, queries: int) -> torch.Tensor:
    """[documents, heads, queries * tokens, x] -> [documents * queries, heads, tokens, x]."""
    return tensor.unflatten(2, (queries, -1)).transpose(1, 2).flatten(0, 1)


def _laid_out(block: EncodedBlock) -> tuple[Columns, torch.Tensor]:
    """Return columns and states as the head wants them, a row for each pair: queries first, documents within."""
    queries, documents = block.queries, block.documents
    query_rows = [row[real].tolist() for row, real in zip(queries.ids, queries.real, strict=True)]
    document_rows = [row[real].tolist() for row, real in zip(documents.ids, documents.real, strict=True)]
    rows = [([*query, *document[1:]], len(query)) for query in query_rows for document in document_rows]
    columns = lay_out(**padded(rows, queries.ids.device))
    size = block.query_states.shape[2]
    states = torch.cat(
        [part.float().reshape(-1, size) for part in (block.query_states, block.reading_states, block.document_states)]
    )
    places = _places(query_rows, document_rows, columns.ids.shape[1], block.reading_states.shape)
    return columns, states[places.to(states.device)]


def _places(
    queries: Sequence[Sequence[int]], documents: Sequence[Sequence[int]], width: int, reading: torch.Size
) -> torch.Tensor:
    """Return for each pair and column the row of the states: of the query, of the reading query, or of the document."""
    of_documents, of_queries, query_width, _ = reading
    longest = max(map(len, documents))
    first_reading, first_document = of_queries * query_width, of_queries * query_width * (1 + of_documents)
    places = torch.zeros(of_queries * of_documents, width, dtype=torch.long)
    for q, query in enumerate(queries):
        for d, document in enumerate(documents):
            row, length = places[q * of_documents + d], len(query)
            row[:length] = torch.arange(length) + q * query_width
            row[length : 2 * length] = torch.arange(length) + first_reading + (d * of_queries + q) * query_width
            row[2 * length : 2 * length + len(document)] = torch.arange(len(document)) + first_document + d * longest
    return places


def _positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
