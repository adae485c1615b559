"""Scores pairs with an ONNX graph in the way that the service does, and measures how fast and how steady it is."""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rerankd.engines.onnx.engine import exact_int8
from rerankd.tools.training.encoding import PairEncoder, length_batches, token_ids

TOKENS_PER_BATCH = 512
THREADS = 2

Row = tuple[list[int], int]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, max_tokens: int = 512
) -> list[Row]:
    """Tokenize (query, document) pairs; a pair over `max_tokens` loses the end of its document."""
    encoder = PairEncoder(tokenizer)
    queries = token_ids(tokenizer, [query for query, _ in pairs], max_tokens=max_tokens - 3)
    documents = token_ids(tokenizer, [document for _, document in pairs], max_tokens=max_tokens)
    return [encoder.pair(q, d, max_tokens=max_tokens) for q, d in zip(queries, documents, strict=True)]


class OnnxScorer:
    """One session with single-threaded operators; as many batches run at once as there are threads."""

    def __init__(self, path: Path, *, threads: int = THREADS) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for key, value in exact_int8().items():
            options.add_session_config_entry(key, value)
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._threads = threads

    def score(self, rows: Sequence[Row], *, tokens_per_batch: int = TOKENS_PER_BATCH) -> NDArray[np.float32]:
        """Return the logits of `rows` in their order; batches are of alike lengths."""
        batches = list(length_batches([len(ids) for ids, _ in rows], tokens_per_batch=tokens_per_batch))
        return self.score_batches(rows, batches)

    def score_batches(self, rows: Sequence[Row], batches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        logits = np.zeros(len(rows), dtype=np.float32)

        def fill(batch: Sequence[int]) -> None:
            logits[list(batch)] = self._session.run(["logits"], model_inputs([rows[i] for i in batch]))[0][:, 0]

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(fill, batches))
        return logits


def pairs_per_s(scorer: OnnxScorer, rows: Sequence[Row]) -> float:
    """Return the pairs scored in a second, after a short warm-up."""
    scorer.score(rows[: max(1, len(rows) // 10)])
    began = time.perf_counter()
    scorer.score(rows)
    return len(rows) / (time.perf_counter() - began)


def largest_batch_effect(scorer: OnnxScorer, rows: Sequence[Row], *, batch_size: int = 16, seed: int = 0) -> float:
    """Return the largest difference between a pair's logit alone and in a batch of mixed lengths."""
    alone = scorer.score_batches(rows, [[position] for position in range(len(rows))])
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    mixed = scorer.score_batches(rows, [order[at : at + batch_size] for at in range(0, len(order), batch_size)])
    return float(np.abs(alone - mixed).max())


def model_inputs(rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
    width = max(len(ids) for ids, _ in rows)
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: np.zeros((len(rows), width), dtype=np.int64) for name in names}
    for position, (ids, first) in enumerate(rows):
        inputs["input_ids"][position, : len(ids)] = ids
        inputs["attention_mask"][position, : len(ids)] = 1
        inputs["token_type_ids"][position, first : len(ids)] = 1
    return inputs
