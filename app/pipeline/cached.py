"""Answers known pairs from the cache, so that only unknown ones go on. A broken cache is a cache that knows nothing."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from app.cache.base import Cache
from app.cache.keys import ENTRY, is_entry, pack_entries, pair_keys, unpack_entries
from app.domain import BoolArray, ScoreOptions, Scores, Timings
from app.errors import CacheUnavailable
from app.observer import Observer
from app.pipeline.stage import Stage

_KEYS_AT_A_TIME = 1000


class CachedStage:
    """Wraps a stage whose scores depend on the pair alone. `fingerprint` says everything else that changes them."""

    def __init__(self, inner: Stage, cache: Cache, *, fingerprint: str, observer: Observer) -> None:
        self._inner = inner
        self._cache = cache
        self._fingerprint = fingerprint
        self._observer = observer

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given; equal documents are scored once.

        Raises:
            RerankError: what the inner stage raises.
        """
        started = perf_counter()
        keys = await self._keys(query, documents, options)
        first_of: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            first_of.setdefault(key, index)
        known = await self._look_up(list(first_of))
        cache_s = perf_counter() - started

        unknown = [key for key in first_of if key not in known]
        self._observer.cache_looked_up(hits=len(keys) - len(unknown), misses=len(unknown))
        cached = np.ones(len(keys), dtype=np.bool_)
        cached[[first_of[key] for key in unknown]] = False
        timings = Timings(cache_s=cache_s)
        unscored: set[bytes] = set()
        if unknown:
            fresh = await self._inner.score(query, [documents[first_of[key]] for key in unknown], options)
            entries = dict(zip(unknown, pack_entries(entries_of(fresh)), strict=True))
            known |= entries
            if fresh.scored is not None and not fresh.scored.all():
                unscored = {key for key, scored in zip(unknown, fresh.scored.tolist(), strict=True) if not scored}
                entries = {key: entry for key, entry in entries.items() if key not in unscored}
            timings = timings + fresh.timings + Timings(cache_s=await self._fill(entries))
        found = unpack_entries([known[key] for key in keys])
        scored = np.array([key not in unscored for key in keys], dtype=np.bool_) if unscored else None
        return replace(scores_of(found, cached=cached, timings=timings), scored=scored)

    async def _keys(self, query: str, documents: Sequence[str], options: ScoreOptions) -> list[bytes]:
        """Keys of a large request are made in portions, so that the event loop is not held up."""
        fingerprint = _with_options(self._fingerprint, options)
        keys = pair_keys(fingerprint, query, documents[:_KEYS_AT_A_TIME])
        for start in range(_KEYS_AT_A_TIME, len(documents), _KEYS_AT_A_TIME):
            await asyncio.sleep(0)
            keys += pair_keys(fingerprint, query, documents[start : start + _KEYS_AT_A_TIME])
        return keys

    async def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        try:
            found = await self._cache.get_many(keys)
        except CacheUnavailable:
            self._observer.cache_failed(operation="get")
            return {}
        return {key: value for key, value in zip(keys, found, strict=True) if is_entry(value)}

    async def _fill(self, entries: dict[bytes, bytes]) -> float:
        """Store what was scored now and return how many seconds that took."""
        started = perf_counter()
        try:
            await self._cache.put_many({key: entry for key, entry in entries.items() if is_entry(entry)})
        except CacheUnavailable:
            self._observer.cache_failed(operation="put")
        return perf_counter() - started


def _with_options(fingerprint: str, options: ScoreOptions) -> str:
    """What changes a pair's score beside the model and the two texts. Passages are texts of their own."""
    return f"{fingerprint}|{json.dumps([options.max_tokens_per_doc, options.instruction])}"


def entries_of(scores: Scores) -> NDArray[np.void]:
    """What is stored of scores, one element of dtype `ENTRY` a document."""
    entries = np.empty(len(scores.values), dtype=ENTRY)
    entries["value"] = scores.values
    entries["tokens"] = scores.tokens
    entries["dropped"] = scores.dropped
    return entries


def scores_of(entries: NDArray[np.void], *, cached: BoolArray, timings: Timings) -> Scores:
    """Scores from what was stored of them."""
    return Scores(
        values=entries["value"],
        tokens=entries["tokens"].astype(np.int64),
        dropped=entries["dropped"].astype(np.int64),
        cached=cached,
        timings=timings,
    )
