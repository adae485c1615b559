"""What prompts have in common is computed once: keys and values of their beginnings, kept for those that come later.

The ids before an encoding's `boundary` are shared by the other documents or windows of its request, and what all
prompts of a model begin with by all of them.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedModel

from rerankd.cache.lru import Lru
from rerankd.domain import IntArray
from rerankd.engines.torch.prefill import Prefill, States
from rerankd.tasks.encoding import Encoding

# A shorter beginning is cheaper to compute again than to copy.
_LEAST_SHARED_TOKENS: Final = 16
_ID_BYTES: Final = 8
# Layers of these kinds keep keys and values, which can be cut and shared; recurrent ones keep one running state.
_SHAREABLE_LAYERS: Final = {"full_attention", "sliding_attention"}


def has_shareable_layers(model: PreTrainedModel) -> bool:
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    return kinds is None or set(kinds) <= _SHAREABLE_LAYERS


def beginnings_stand_alone(prefill: Prefill) -> bool:
    """Whether keys and values of a beginning are the same whatever follows it: not where all tokens see one another."""
    texts = [np.array([3, 4, last], dtype=np.int64) for last in (5, 6)]
    with torch.inference_mode():
        _, layers = prefill.run([()] * len(texts), texts, keep=True)
    return all(torch.allclose(one[0, :, :2], one[1, :, :2], atol=1e-3) for layer in layers for one in layer)


def shared_tokens(encoding: Encoding) -> int:
    """How many of an encoding's first ids are worth sharing; at least one id remains to be computed."""
    shared = min(encoding.boundary, len(encoding.ids) - 1)
    return shared if shared >= _LEAST_SHARED_TOKENS else 0


class PrefixStore:
    """Keys and values of what prompts begin with, for at most `max_tokens` tokens, least recently used out first. What
    the map takes is nothing beside them: kilobytes a token.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._kept: Lru[bytes, States] = Lru(max_size=max_tokens, size_of=lambda key, _: len(key) // _ID_BYTES)
        self._beginning: IntArray | None = None
        self._lock = Lock()

    def get(self, ids: IntArray) -> States | None:
        with self._lock:
            return self._kept.get(ids.tobytes())

    def put(self, ids: IntArray, states: States) -> None:
        with self._lock:
            self._kept.put(ids.tobytes(), states)

    def beginning_of_all(self, prefixes: Sequence[IntArray]) -> IntArray:
        """What these and all earlier prefixes begin with: soon the fixed words of the model's prompt."""
        with self._lock:
            beginning = prefixes[0] if self._beginning is None else self._beginning
            for ids in prefixes:
                beginning = beginning[: _common_length(beginning, ids)]
            self._beginning = beginning.copy()
            return self._beginning


class SharedPrefixes:
    """Computes the prefixes that a store lacks."""

    def __init__(self, store: PrefixStore, prefill: Prefill) -> None:
        self._store = store
        self._prefill = prefill

    def states_of(self, prefixes: Sequence[IntArray]) -> list[States]:
        """The keys and values of every prefix, computed once for equal ones; an empty one has none."""
        known: dict[bytes, States] = {b"": ()}
        missing: dict[bytes, IntArray] = {}
        for ids in prefixes:
            key = ids.tobytes()
            if key not in known and key not in missing:
                states = self._store.get(ids)
                if states is None:
                    missing[key] = ids
                else:
                    known[key] = states
        if missing:
            known |= zip(missing, self._compute(list(missing.values())), strict=True)
        return [known[ids.tobytes()] for ids in prefixes]

    def _compute(self, prefixes: Sequence[IntArray]) -> list[States]:
        """Compute prefixes and keep them, each from where the beginning that all of the model's prompts share ends."""
        beginning = self._shared_beginning(prefixes)
        start = self._states_of_beginning(beginning)
        rests = [ids[len(beginning) :] for ids in prefixes]
        _, cache = self._prefill.run([start] * len(prefixes), rests, keep=True)
        computed = [_row(cache, row, tokens=len(ids)) for row, ids in enumerate(prefixes)]
        for ids, states in zip(prefixes, computed, strict=True):
            self._store.put(ids, states)
        return computed

    def _shared_beginning(self, prefixes: Sequence[IntArray]) -> IntArray:
        beginning = self._store.beginning_of_all(prefixes)
        # The last token is left to each: a prefix may be no longer than the shared beginning.
        shared = min(len(beginning), *(len(ids) - 1 for ids in prefixes))
        return beginning[:shared] if shared >= _LEAST_SHARED_TOKENS else beginning[:0]

    def _states_of_beginning(self, ids: IntArray) -> States:
        if not len(ids):
            return ()
        known = self._store.get(ids)
        if known is None:
            _, known = self._prefill.run([()], [ids], keep=True)
            self._store.put(ids, known)
        return known


def _row(cache: States, row: int, *, tokens: int) -> States:
    """One row's first tokens, copied so that the rest of the batch can go."""
    return [
        (keys[row : row + 1, :, :tokens].clone(), values[row : row + 1, :, :tokens].clone()) for keys, values in cache
    ]


def _common_length(one: IntArray, other: IntArray) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
