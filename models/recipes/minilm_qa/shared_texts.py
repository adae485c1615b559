"""What the head adds up for many pairs of few texts, in float32: every document and every query is encoded once.

A document does not attend to the query, so all that a pair takes from it are its last states, and its keys and values
in every layer. What is left to compute for a pair is the query that reads it: little beside a whole pass, where many
queries share the documents of a small collection and are shorter than these.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn.functional import softmax
from tqdm import tqdm

from rerankd.tools.training.encoding import padded
from rerankd.tools.training.model import UNSEEN, CrossEncoder, lay_out
from rerankd.tools.training.runtime import THREADS, Row

# Of the keys that all queries of a batch see, so that what attention computes stays within some megabytes.
_MOST_SEEN = 20_000

# A layer's keys and values, [heads, tokens, size of a head] each.
KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class SharedTexts:
    """Keeps the queries that it has encoded; documents are let go after their pairs."""

    def __init__(self, model: CrossEncoder) -> None:
        self._model = model
        self._queries: dict[tuple[int, ...], torch.Tensor] = {}

    def head_inputs(self, rows: Sequence[Row], *, progress: str | None = None) -> torch.Tensor:
        """Return the classifier's inputs for rows of `PairEncoder`, in their order, [rows, width of the head]."""
        inputs = torch.zeros(len(rows), self._model.classifier.in_features)
        pairs_of: dict[tuple[int, ...], list[int]] = {}
        for position, (ids, first) in enumerate(rows):
            pairs_of.setdefault((ids[0], *ids[first:]), []).append(position)
        with tqdm(total=len(rows), desc=progress, unit="pair", disable=progress is None, mininterval=5) as bar:

            def fill(document: tuple[int, ...]) -> None:
                positions = pairs_of[document]
                inputs[positions] = self._of_document(document, [rows[position] for position in positions])
                bar.update(len(positions))

            # The largest first, so that both threads are busy to the end.
            largest_first = sorted(pairs_of, key=lambda document: len(document) * len(pairs_of[document]), reverse=True)
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(fill, largest_first))
        return inputs

    @torch.inference_mode()
    def _of_document(self, document: Sequence[int], rows: Sequence[Row]) -> torch.Tensor:
        states, seen = self._encode(document)
        inputs = torch.zeros(len(rows), self._model.classifier.in_features)
        by_length = sorted(range(len(rows)), key=lambda position: rows[position][1])
        size = max(1, _MOST_SEEN // len(document))
        for batch in [by_length[start : start + size] for start in range(0, len(rows), size)]:
            chosen = [rows[position] for position in batch]
            queries = [ids[:first] for ids, first in chosen]
            reading = self._read(queries, seen)
            columns = lay_out(**padded(chosen, torch.device("cpu")))
            laid_out = torch.zeros(*columns.ids.shape, states.shape[1])
            for row, query in enumerate(queries):
                parts = (self._encoded_query(query), reading[row, : len(query)], states)
                laid_out[row, : 2 * len(query) + len(document)] = torch.cat(parts)
            inputs[batch] = self._model.head_inputs(columns, laid_out)
        return inputs

    def _encoded_query(self, query: Sequence[int]) -> torch.Tensor:
        key = tuple(query)
        if key not in self._queries:
            self._queries[key], _ = self._encode(query)
        return self._queries[key]

    def _encode(self, text: Sequence[int]) -> tuple[torch.Tensor, list[KeysAndValues]]:
        """Return a text's last states, [tokens, size], and every layer's keys and values, when it is read alone."""
        model, ids = self._model, torch.tensor([text])
        hidden = model.embed(ids, _positions(ids), torch.zeros_like(ids))
        seen = []
        for layer in model.bert.encoder.layer:
            query, key, value = model.projections(layer, hidden)
            seen.append((key[0], value[0]))
            weights = softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
            hidden = model.after_attention(layer, weights @ value, hidden)
        return hidden[0], seen

    def _read(self, queries: Sequence[Sequence[int]], seen: Sequence[KeysAndValues]) -> torch.Tensor:
        """Return the last states, [queries, tokens, size], of queries that see themselves and one document."""
        model, width = self._model, max(map(len, queries))
        ids = torch.tensor([[*query, *[0] * (width - len(query))] for query in queries])
        own_bias = torch.tensor([[0.0] * len(query) + [UNSEEN] * (width - len(query)) for query in queries])
        hidden = model.embed(ids, _positions(ids), torch.ones_like(ids))
        for layer, (document_key, document_value) in zip(model.bert.encoder.layer, seen, strict=True):
            query, key, value = model.projections(layer, hidden)
            own = query @ key.transpose(-1, -2)
            # One matmul for all queries: [heads, queries * tokens, tokens of the document].
            together = query.transpose(0, 1).flatten(1, 2)
            others = (together @ document_key.transpose(-1, -2)).unflatten(1, (len(queries), width)).transpose(0, 1)
            logits = torch.cat([own, others], dim=-1) * query.shape[-1] ** -0.5
            logits[..., :width] += own_bias[:, None, None]
            to_own, to_document = softmax(logits, dim=-1).split([width, others.shape[-1]], dim=-1)
            gathered = (to_document.transpose(0, 1).flatten(1, 2) @ document_value).unflatten(1, (len(queries), width))
            hidden = model.after_attention(layer, to_own @ value + gathered.transpose(0, 1), hidden)
        return hidden


def _positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)
