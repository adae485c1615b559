"""Takes the vectors of known texts from the cache, and has only unknown ones embedded. A broken cache is an empty one.

A document's entry does not depend on the query: another query over the same documents embeds the query alone.
"""

import json
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from rerankd.cache.base import Cache
from rerankd.concurrency.worker import in_chunks
from rerankd.domain import ScoreOptions, Timings
from rerankd.errors import CacheUnavailable
from rerankd.pipeline.cached import keys_of
from rerankd.pipeline.embedded import Embedded, Texts
from rerankd.pipeline.known_scores import first_positions
from rerankd.pipeline.vector_codec import Entry, VectorCodec, is_comparable
from rerankd.scorers.base import Role, VectorForm
from rerankd.telemetry.observer import Observer


class CachedTexts:
    """Wraps what embeds. `fingerprint` says everything but the text that changes its vectors."""

    def __init__(self, inner: Texts, cache: Cache, form: VectorForm, *, fingerprint: str, observer: Observer) -> None:
        self._inner = inner
        self._cache = cache
        self._codec = VectorCodec(form)
        self._at_a_time = form.texts_at_a_time
        self._fingerprint = fingerprint
        self._observer = observer

    async def embed(self, role: Role, texts: Sequence[str], options: ScoreOptions) -> Embedded:
        """The vectors of the texts; equal ones are embedded once.

        Raises:
            RerankError: what the inner one raises.
        """
        started = perf_counter()
        keys = await keys_of(_with_options(self._fingerprint, role, options), role, texts)
        known = await self._look_up(keys)
        unknown = await first_positions(keys, np.flatnonzero([key not in known for key in keys]))
        cached = np.ones(len(keys), dtype=np.bool_)
        cached[list(unknown.values())] = False
        timings = Timings(cache_s=perf_counter() - started)
        self._observer.cache_looked_up(hits=len(keys) - len(unknown), misses=len(unknown))
        if options.terms.meter.limited:
            # A text that is asked for twice counts twice.
            options.terms.meter.read(sum(known[key].tokens for key in keys if key in known))
        dropped: dict[bytes, int] = {}
        if unknown:
            fresh = await self._inner.embed(role, [texts[index] for index in unknown.values()], options)
            started = perf_counter()
            dropped = dict(zip(unknown, fresh.dropped.tolist(), strict=True))
            entries = _entries(list(unknown), fresh)
            known |= entries
            await self._keep(entries, owner=options.terms.caller)
            timings += fresh.timings + Timings(cache_s=perf_counter() - started)
        found = [known.get(key) for key in keys]
        return Embedded(
            vectors=[None if entry is None else entry.vectors for entry in found],
            tokens=np.array([0 if entry is None else entry.tokens for entry in found], dtype=np.int64),
            dropped=np.array(
                [dropped[key] if entry is None else entry.dropped for key, entry in zip(keys, found, strict=True)],
                dtype=np.int64,
            ),
            cached=cached,
            timings=timings,
        )

    async def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """What the cache knows."""
        known: dict[bytes, Entry] = {}
        async for span in in_chunks(len(keys), most=self._at_a_time):
            asked = list(dict.fromkeys(keys[span]))
            try:
                stored = await self._cache.get_many(asked)
            except CacheUnavailable:
                self._observer.cache_failed(operation="get")
                break
            entries = zip(asked, map(self._codec.read, stored), strict=True)
            known |= {key: entry for key, entry in entries if entry is not None}
        return known

    async def _keep(self, entries: dict[bytes, Entry], *, owner: str) -> None:
        """Store what was embedded now."""
        fresh = list(entries.items())
        async for span in in_chunks(len(fresh), most=self._at_a_time):
            kept = {key: self._codec.write(entry) for key, entry in fresh[span] if is_comparable(entry.vectors)}
            try:
                await self._cache.put_many(kept, owner=owner)
            except CacheUnavailable:
                self._observer.cache_failed(operation="put")
                break


def _entries(keys: Sequence[bytes], fresh: Embedded) -> dict[bytes, Entry]:
    rows = zip(keys, fresh.vectors, fresh.tokens.tolist(), fresh.dropped.tolist(), strict=True)
    return {key: Entry(vectors, tokens, dropped) for key, vectors, tokens, dropped in rows if vectors is not None}


def _with_options(fingerprint: str, role: Role, options: ScoreOptions) -> str:
    """What changes a text's vectors beside the model and the text, and the scope that may find them."""
    changes = options.instruction if role == "query" else options.max_tokens_per_doc
    scope = [options.scope] if options.scope else []
    return f"{fingerprint}|vectors|{json.dumps([changes, *scope])}"
