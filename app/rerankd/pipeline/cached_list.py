"""Answers a repeated list from the cache: an order depends on all documents, their order and what the caller wished."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Final

import numpy as np

from rerankd.cache.base import Cache
from rerankd.cache.keys import list_key
from rerankd.concurrency.worker import in_steps
from rerankd.domain import ScoreOptions, Scores, Timings
from rerankd.errors import CacheUnavailable
from rerankd.pipeline.score_codec import ScoreCodec
from rerankd.pipeline.stage import Stage
from rerankd.telemetry.observer import Observer

_LISTS: Final = ScoreCodec(b"ls01")


class CachedListStage:
    """Wraps a stage whose scores depend on the whole request. `fingerprint` says everything else that changes them.
    `scheduled`: they also depend on how many documents a caller wants to see, and on its wishes for windows.
    """

    def __init__(
        self, inner: Stage, cache: Cache, *, fingerprint: str, observer: Observer, scheduled: bool = True
    ) -> None:
        self._inner = inner
        self._cache = cache
        self._fingerprint = fingerprint
        self._observer = observer
        self._scheduled = scheduled

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Order the documents.

        Raises:
            RerankError: what the inner stage raises.
        """
        started = perf_counter()
        wishes: tuple[object, ...] = (options.max_tokens_per_doc, options.instruction)
        if self._scheduled:
            wishes += (options.top_n, options.windows)
        scope = f"|{options.scope!r}" if options.scope else ""
        key = await in_steps(list_key(f"{self._fingerprint}|{wishes!r}{scope}", query, documents))
        stored = await self._look_up(key)
        timings = Timings(cache_s=perf_counter() - started)
        known = _LISTS.read_whole(stored, documents=len(documents))
        if known is not None:
            self._observer.cache_looked_up(hits=len(documents), misses=0)
            options.terms.meter.read(int(known.tokens.sum()))
            return replace(known, cached=np.ones(len(documents), dtype=np.bool_), timings=timings)
        self._observer.cache_looked_up(hits=0, misses=len(documents))
        fresh = await self._inner.score(query, documents, options)
        timings += fresh.timings
        # After a refusal the model is asked again: a cached refusal would never become an answer.
        if not fresh.unordered and not fresh.ungraded and fresh.scored is None:
            timings += Timings(cache_s=await self._fill(key, _LISTS.write_whole(fresh), owner=options.terms.caller))
        return replace(fresh, cached=np.zeros(len(documents), dtype=np.bool_), timings=timings)

    async def _look_up(self, key: bytes) -> bytes | None:
        try:
            (stored,) = await self._cache.get_many([key])
        except CacheUnavailable:
            self._observer.cache_failed(operation="get")
            return None
        return stored

    async def _fill(self, key: bytes, entries: bytes, *, owner: str) -> float:
        """Store an order and return how many seconds that took."""
        started = perf_counter()
        try:
            await self._cache.put_many({key: entries}, owner=owner)
        except CacheUnavailable:
            self._observer.cache_failed(operation="put")
        return perf_counter() - started
