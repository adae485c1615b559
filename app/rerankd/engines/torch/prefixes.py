"""Caches keys and values of common prefixes, so that these are computed once.

All documents or windows of a request share the ids before `boundary`, and all prompts of a model share a beginning.
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

# A shorter prefix is cheaper to compute than to copy.
_LEAST_SHARED_TOKENS: Final = 16
_ID_BYTES: Final = 8
# Layers of these kinds have keys and values that can be cut and shared; recurrent layers have one running state.
_SHAREABLE_LAYERS: Final = {"full_attention", "sliding_attention"}


def has_shareable_layers(model: PreTrainedModel) -> bool:
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    return kinds is None or set(kinds) <= _SHAREABLE_LAYERS


def beginnings_stand_alone(prefill: Prefill) -> bool:
    """Whether a prefix's keys and values do not depend on what follows. They do if all tokens see each other."""
    texts = [np.array([3, 4, last], dtype=np.int64) for last in (5, 6)]
    with torch.inference_mode():
        _, layers = prefill.run([()] * len(texts), texts, keep=True)
    return all(torch.allclose(one[0, :, :2], one[1, :, :2], atol=1e-3) for layer in layers for one in layer)


def shared_tokens(encoding: Encoding) -> int:
    """How many of an encoding's first ids to share. At least one id remains to be computed."""
    shared = min(encoding.boundary, len(encoding.ids) - 1)
    return shared if shared >= _LEAST_SHARED_TOKENS else 0


class PrefixStore:
    """Keys and values of prefixes, up to `max_tokens` tokens; the least recently used are evicted first. They take
    kilobytes per token, so the map's own memory does not count.
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
        """The common beginning of these and all earlier prefixes: soon the fixed words of the model's prompt."""
        with self._lock:
            beginning = prefixes[0] if self._beginning is None else self._beginning
            for ids in prefixes:
                beginning = beginning[: _common_length(beginning, ids)]
            self._beginning = beginning.copy()
            return self._beginning


class SharedPrefixes:
    """Computes the prefixes that are not in a store."""

    def __init__(self, store: PrefixStore, prefill: Prefill) -> None:
        self._store = store
        self._prefill = prefill

    def states_of(self, prefixes: Sequence[IntArray]) -> list[States]:
        """The keys and values of each prefix. Equal prefixes are computed once; an empty one has none."""
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
        """Compute and store prefixes, each starting after the common beginning of all the model's prompts."""
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
        # One token remains for each, because a prefix may be equal to the common beginning.
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
    """One row's first tokens, copied so that the batch's memory can be freed."""
    return [
        (keys[row : row + 1, :, :tokens].clone(), values[row : row + 1, :, :tokens].clone()) for keys, values in cache
    ]


def _common_length(one: IntArray, other: IntArray) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
