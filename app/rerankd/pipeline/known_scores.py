"""Scores that a cache knows by key, completed by those that it does not. A broken cache is an empty cache."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from time import perf_counter
from typing import Final

import numpy as np

from rerankd.cache.base import Cache
from rerankd.concurrency.worker import in_chunks
from rerankd.domain import IntArray, Scores, Terms, Timings
from rerankd.errors import CacheUnavailable
from rerankd.pipeline.score_codec import EntryCodec
from rerankd.telemetry.observer import Observer
from rerankd.telemetry.spans import traced

_UNKNOWN: Final = -1

# The scores of what is at these positions.
Compute = Callable[[Sequence[int]], Awaitable[Scores]]


class KnownScores:
    """What is scored depends on its key alone; `codec` says how a score becomes an entry."""

    def __init__(self, cache: Cache, codec: EntryCodec, *, observer: Observer) -> None:
        self._cache = cache
        self._codec = codec
        self._observer = observer

    async def complete(self, keys: Sequence[bytes], compute: Compute, terms: Terms) -> Scores:
        """The scores of all keys, in their order; unknown ones are computed, once for equal keys, and stored.

        Raises:
            RerankError: what `compute` raises.
        """
        started = perf_counter()
        with traced("cache get", {"rerankd.items": len(keys)}):
            known, row_of = await self._look_up(keys)
        rows = np.arange(len(keys)) if len(row_of) == len(keys) else await _rows(keys, row_of)
        unknown = await first_positions(keys, np.flatnonzero(rows == _UNKNOWN))
        timings = Timings(cache_s=perf_counter() - started)
        self._observer.cache_looked_up(hits=len(keys) - len(unknown), misses=len(unknown))
        if terms.meter.limited:
            # What is asked for twice counts twice.
            terms.meter.read(int(known.tokens[rows[rows != _UNKNOWN]].sum()))
        cached = np.ones(len(keys), dtype=np.bool_)
        scores = known
        if unknown:
            positions = list(unknown.values())
            cached[positions] = False
            fresh = await compute(positions)
            started = perf_counter()
            with traced("cache put", {"rerankd.items": len(unknown)}):
                await self._keep(list(unknown), fresh, owner=terms.caller)
            row_of |= zip(unknown, count(len(known)), strict=False)
            rows = await _rows(keys, row_of)
            scores = Scores.concatenate([known, fresh]) if len(known) else fresh
            timings += fresh.timings + Timings(cache_s=perf_counter() - started)
        return replace(scores.take(rows), cached=cached, timings=timings)

    async def _look_up(self, keys: Sequence[bytes]) -> tuple[Scores, dict[bytes, int]]:
        """The scores that the cache knows, and each known key's position among them."""
        row_of: dict[bytes, int] = {}
        parts: list[Scores] = []
        read = 0
        async for span in in_chunks(len(keys)):
            asked = list(dict.fromkeys(keys[span]))
            try:
                scores, found = self._codec.read(await self._cache.get_many(asked))
            except CacheUnavailable:
                self._observer.cache_failed(operation="get")
                break
            names = asked if len(found) == len(asked) else [asked[index] for index in found.tolist()]
            row_of |= zip(names, count(read), strict=False)
            parts.append(scores)
            read += len(scores)
        return Scores.concatenate(parts or [Scores.unread(0)]), row_of

    async def _keep(self, keys: Sequence[bytes], fresh: Scores, *, owner: str) -> None:
        """Store what was scored now."""
        kept = np.flatnonzero(self._codec.keeps(fresh))
        async for span in in_chunks(len(kept)):
            entries = self._codec.write(fresh.take(kept[span]))
            names = [keys[index] for index in kept[span].tolist()]
            if not await self._store(dict(zip(names, entries, strict=True)), owner=owner):
                break

    async def _store(self, entries: Mapping[bytes, bytes], *, owner: str) -> bool:
        """Whether that succeeded."""
        try:
            await self._cache.put_many(entries, owner=owner)
        except CacheUnavailable:
            self._observer.cache_failed(operation="put")
            return False
        return True


async def _rows(keys: Sequence[bytes], row_of: Mapping[bytes, int]) -> IntArray:
    rows = np.empty(len(keys), dtype=np.int64)
    async for span in in_chunks(len(keys)):
        rows[span] = [row_of.get(key, _UNKNOWN) for key in keys[span]]
    return rows


async def first_positions(keys: Sequence[bytes], positions: IntArray) -> dict[bytes, int]:
    """Of the keys at these positions, where each is first."""
    firsts: dict[bytes, int] = {}
    async for span in in_chunks(len(positions)):
        for index in positions[span].tolist():
            firsts.setdefault(keys[index], index)
    return firsts
