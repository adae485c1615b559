"""Answers known pairs from the cache, and passes on only unknown ones."""

import json
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Final

from rerankd.cache.base import Cache
from rerankd.cache.keys import AT_A_TIME, pair_key, pair_keys
from rerankd.concurrency.worker import in_chunks, in_steps
from rerankd.domain import ScoreOptions, Scores, Timings
from rerankd.pipeline.known_scores import KnownScores
from rerankd.pipeline.score_codec import EntryCodec, MarkedCodec, RemarkedCodec, ScoreCodec
from rerankd.pipeline.stage import Stage
from rerankd.telemetry.observer import Observer

PAIRS: Final = ScoreCodec(b"pr01")
MARKED_PAIRS: Final = MarkedCodec(b"mk01")
REMARKED_PAIRS: Final = RemarkedCodec(b"rm01")


class CachedStage:
    """Wraps a stage whose scores depend on the pair alone. `fingerprint` says everything else that changes them."""

    def __init__(
        self, inner: Stage, cache: Cache, *, fingerprint: str, observer: Observer, codec: EntryCodec = PAIRS
    ) -> None:
        self._inner = inner
        self._known = KnownScores(cache, codec, observer=observer)
        self._fingerprint = fingerprint

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given; equal documents are scored once.

        Raises:
            RerankError: what the inner stage raises.
        """

        async def compute(positions: Sequence[int]) -> Scores:
            new = [documents[index] async for span in in_chunks(len(positions)) for index in positions[span]]
            return await self._inner.score(query, new, options)

        started = perf_counter()
        keys = await keys_of(with_options(self._fingerprint, options), query, documents)
        hashed = Timings(cache_s=perf_counter() - started)
        scores = await self._known.complete(keys, compute, options.terms)
        return replace(scores, timings=scores.timings + hashed)


def with_options(fingerprint: str, options: ScoreOptions) -> str:
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
