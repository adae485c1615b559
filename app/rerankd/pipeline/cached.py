"""Answers known pairs from the cache, so that only unknown ones go on. A broken cache is a cache that knows nothing."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from rerankd.cache.base import Cache
from rerankd.cache.keys import AT_A_TIME, ENTRY, is_entry, pack_entries, pair_key, pair_keys, unpack_entries
from rerankd.concurrency.worker import in_portions, in_steps
from rerankd.domain import BoolArray, ScoreOptions, Scores, Timings
from rerankd.errors import CacheUnavailable
from rerankd.pipeline.stage import Stage
from rerankd.telemetry.observer import Observer


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
        known, unknown = await self._look_up(keys)
        cache_s = perf_counter() - started

        self._observer.cache_looked_up(hits=len(keys) - len(unknown), misses=len(unknown))
        if options.terms.meter.limited:
            options.terms.meter.read(_tokens_of(known, keys))
        cached = np.ones(len(keys), dtype=np.bool_)
        positions = list(unknown.values())
        cached[positions] = False
        timings = Timings(cache_s=cache_s)
        unscored: set[bytes] = set()
        if unknown:
            portions = in_portions(len(positions))
            new = [documents[index] async for some in portions for index in positions[some]]
            fresh = await self._inner.score(query, new, options)
            if fresh.scored is not None:
                unscored = {key for key, scored in zip(unknown, fresh.scored.tolist(), strict=True) if not scored}
            started = perf_counter()
            await self._keep(list(unknown), entries_of(fresh), unscored, known, owner=options.terms.caller)
            timings = timings + fresh.timings + Timings(cache_s=perf_counter() - started)
        found = np.empty(len(keys), dtype=ENTRY)
        async for some in in_portions(len(keys)):
            found[some] = unpack_entries([known[key] for key in keys[some]])
        scored = np.array([key not in unscored for key in keys], dtype=np.bool_) if unscored else None
        return replace(scores_of(found, cached=cached, timings=timings), scored=scored)

    async def _keys(self, query: str, documents: Sequence[str], options: ScoreOptions) -> list[bytes]:
        fingerprint = _with_options(self._fingerprint, options)
        keys: list[bytes] = []
        async for some in in_portions(len(documents)):
            portion = documents[some]
            if sum(map(len, portion)) <= AT_A_TIME:
                keys += pair_keys(fingerprint, query, portion)
            else:
                keys += [await in_steps(pair_key(fingerprint, query, document)) for document in portion]
        return keys

    async def _look_up(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[bytes, int]]:
        """The entries that are known by their keys, and of the other keys where each is first."""
        known: dict[bytes, bytes] = {}
        unknown: dict[bytes, int] = {}
        available = True
        async for some in in_portions(len(keys)):
            asked = list(dict.fromkeys(keys[some]))
            try:
                found = await self._cache.get_many(asked) if available else []
            except CacheUnavailable:
                self._observer.cache_failed(operation="get")
                available, found = False, []
            known |= {key: value for key, value in zip(asked, found, strict=False) if is_entry(value)}
            for index in range(some.start, some.stop):
                if keys[index] not in known:
                    unknown.setdefault(keys[index], index)
        return known, unknown

    async def _keep(
        self,
        keys: Sequence[bytes],
        entries: NDArray[np.void],
        unscored: Collection[bytes],
        known: dict[bytes, bytes],
        *,
        owner: str,
    ) -> None:
        """Add what was scored now to what is `known`, and store all but the `unscored`."""
        available = True
        async for some in in_portions(len(keys)):
            part = dict(zip(keys[some], pack_entries(entries[some]), strict=True))
            known |= part
            available = available and await self._store(
                {key: entry for key, entry in part.items() if key not in unscored and is_entry(entry)}, owner=owner
            )

    async def _store(self, entries: Mapping[bytes, bytes], *, owner: str) -> bool:
        """Whether that succeeded."""
        try:
            await self._cache.put_many(entries, owner=owner)
        except CacheUnavailable:
            self._observer.cache_failed(operation="put")
            return False
        return True


def _tokens_of(known: Mapping[bytes, bytes], keys: Sequence[bytes]) -> int:
    """What the model read when it filled the cache; a pair that is asked for twice counts twice."""
    return int(unpack_entries([known[key] for key in keys if key in known])["tokens"].sum())


def _with_options(fingerprint: str, options: ScoreOptions) -> str:
    """What changes a pair's score beside the model and the two texts, and who may find it. Passages are texts of their
    own.
    """
    scope = [options.scope] if options.scope else []
    return f"{fingerprint}|{json.dumps([options.max_tokens_per_doc, options.instruction, *scope])}"


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
