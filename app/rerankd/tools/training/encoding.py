"""Tokenizes texts once and lays them out for BERT: `[CLS] query [SEP] document [SEP]`, in batches of alike lengths."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

MAX_QUERY_TOKENS = 128


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
    """Return the texts' ids without special tokens, cut to `max_tokens`."""
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_tokens)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def length_batches(lengths: Sequence[int], *, tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield positions in batches of alike lengths, so that few tokens are padding."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[position] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


class PairEncoder:
    """Lays out token ids; cuts the document where a pair is too long, never the query."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._cls, self._sep = int(tokenizer.cls_token_id), int(tokenizer.sep_token_id)

    def single(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """Return one text's row and the length of its first segment."""
        row = [self._cls, *ids, self._sep]
        return row, len(row)

    def pair(self, query: Sequence[int], document: Sequence[int], *, max_tokens: int) -> tuple[list[int], int]:
        """Return a pair's row and the length of its first segment."""
        room = max(0, max_tokens - len(query) - 3)
        first = [self._cls, *query, self._sep]
        return [*first, *document[:room], self._sep], len(first)


def padded(rows: Sequence[tuple[Sequence[int], int]], device: torch.device) -> dict[str, torch.Tensor]:
    """Return the model's three inputs for rows of an encoder."""
    width = max(len(row) for row, _ in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask, token_type_ids = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for position, (row, first) in enumerate(rows):
        input_ids[position, : len(row)] = torch.tensor(row)
        attention_mask[position, : len(row)] = 1
        token_type_ids[position, first : len(row)] = 1
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
