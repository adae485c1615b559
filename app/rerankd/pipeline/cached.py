"""Answers known pairs from the cache, and passes on only unknown ones. A broken cache is an empty cache."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from time import perf_counter
from typing import Final

import numpy as np

from rerankd.cache.base import Cache
from rerankd.cache.keys import AT_A_TIME, pair_key, pair_keys
from rerankd.concurrency.worker import in_chunks, in_steps
from rerankd.domain import IntArray, ScoreOptions, Scores, Timings
from rerankd.errors import CacheUnavailable
from rerankd.pipeline.score_codec import ScoreCodec
from rerankd.pipeline.stage import Stage
from rerankd.telemetry.observer import Observer

_PAIRS: Final = ScoreCodec(b"pr01")
_UNKNOWN: Final = -1


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
        known, row_of = await self._look_up(keys)
        rows = np.arange(len(keys)) if len(row_of) == len(keys) else await _rows(keys, row_of)
        unknown = await first_positions(keys, np.flatnonzero(rows == _UNKNOWN))
        timings = Timings(cache_s=perf_counter() - started)
        self._observer.cache_looked_up(hits=len(keys) - len(unknown), misses=len(unknown))
        if options.terms.meter.limited:
            # A pair that is asked for twice counts twice.
            options.terms.meter.read(int(known.tokens[rows[rows != _UNKNOWN]].sum()))
        cached = np.ones(len(keys), dtype=np.bool_)
        scores = known
        if unknown:
            positions = list(unknown.values())
            cached[positions] = False
            new = [documents[index] async for span in in_chunks(len(unknown)) for index in positions[span]]
            fresh = await self._inner.score(query, new, options)
            started = perf_counter()
            await self._keep(list(unknown), fresh, owner=options.terms.caller)
            row_of |= zip(unknown, count(len(known)), strict=False)
            rows = await _rows(keys, row_of)
            scores = Scores.concatenate([known, fresh]) if len(known) else fresh
            timings += fresh.timings + Timings(cache_s=perf_counter() - started)
        return replace(scores.take(rows), cached=cached, timings=timings)

    async def _keys(self, query: str, documents: Sequence[str], options: ScoreOptions) -> list[bytes]:
        return await keys_of(_with_options(self._fingerprint, options), query, documents)

    async def _look_up(self, keys: Sequence[bytes]) -> tuple[Scores, dict[bytes, int]]:
        """The scores that the cache knows, and each known key's position among them."""
        row_of: dict[bytes, int] = {}
        parts: list[Scores] = []
        read = 0
        async for span in in_chunks(len(keys)):
            asked = list(dict.fromkeys(keys[span]))
            try:
                scores, found = _PAIRS.read(await self._cache.get_many(asked))
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
        kept = np.flatnonzero(_PAIRS.keeps(fresh))
        async for span in in_chunks(len(kept)):
            entries = _PAIRS.write(fresh.take(kept[span]))
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


def _with_options(fingerprint: str, options: ScoreOptions) -> str:
    """What changes a pair's score beside the model and the two texts, and the scope that may find it. A passage is a
    text of its own.
    """
    scope = [options.scope] if options.scope else []
    return f"{fingerprint}|{json.dumps([options.max_tokens_per_doc, options.instruction, *scope])}"


async def keys_of(fingerprint: str, query: str, documents: Sequence[str]) -> list[bytes]:
    """One key per document, with turns for other work between the chunks of many or long ones."""
    keys: list[bytes] = []
    async for span in in_chunks(len(documents)):
        chunk = documents[span]
        if sum(map(len, chunk)) <= AT_A_TIME:
            keys += pair_keys(fingerprint, query, chunk)
        else:
            keys += [await in_steps(pair_key(fingerprint, query, document)) for document in chunk]
    return keys


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
