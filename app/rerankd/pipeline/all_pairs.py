"""Compares each of a list's first documents with every other one, in both orders, and ranks them by what they win.

Pradeep et al., "The Expando-Mono-Duo Design Pattern for Text Ranking with Pretrained Sequence-to-Sequence Models",
2021: the probabilities that a document is the better one are added up. Here a document's score is the mean of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rerankd.batching.admission import Estimate, Tokenized
from rerankd.batching.batcher import Batcher
from rerankd.batching.work import WorkItem
from rerankd.cache.keys import comparison_key
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.worker import in_chunks
from rerankd.domain import IntArray, ScoreOptions, Scores, Timings, WindowPlan, WindowWishes
from rerankd.errors import InvalidRequest
from rerankd.pipeline.cached import keys_of, with_options
from rerankd.pipeline.chunks import share_of
from rerankd.pipeline.items import items_of, tokenized
from rerankd.pipeline.known_scores import KnownScores
from rerankd.pipeline.score_codec import ScoreCodec
from rerankd.scorers.base import ComparisonScorer
from rerankd.scorers.ranking import sigmoid

T = TypeVar("T")
R = TypeVar("R")

ALL_PAIRS_CODEC: Final = ScoreCodec(b"ap01")
# As many prompts as other requests wait for: each takes some ten microseconds, beside its documents' tokens.
_COMPARISONS_PER_CALL: Final = 250


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs of document indices, `firsts` against `seconds`, each of shape [comparisons]."""

    firsts: IntArray
    seconds: IntArray

    @classmethod
    def among(cls, candidates: IntArray) -> "Comparisons":
        """Every candidate with every other, in both orders. A single one is compared with itself: a client or a canary
        must learn whether the model answers.
        """
        firsts, seconds = (indices.ravel() for indices in np.meshgrid(candidates, candidates, indexing="ij"))
        others = firsts != seconds if len(candidates) > 1 else np.ones(1, dtype=np.bool_)
        return cls(firsts[others], seconds[others])

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, places: slice | IntArray) -> "Comparisons":
        return Comparisons(self.firsts[places], self.seconds[places])

    def per_document(self, of_first: NDArray[Any], of_second: NDArray[Any], documents: int) -> NDArray[np.float64]:
        """What comparisons say of each document, added up, shape [documents]."""
        total = np.zeros(documents)
        np.add.at(total, self.firsts, of_first)
        np.add.at(total, self.seconds, of_second)
        return total


class AllPairsStage(Generic[T, R]):
    """Scores lie in (0, 1) and compare the documents of one request only. Documents beyond the depth keep their order,
    below all others. `known` None: nothing is remembered; `fingerprint` says what changes a comparison beside texts.
    """

    def __init__(
        self,
        scorer: ComparisonScorer[T, R],
        batcher: Batcher[T, R],
        tokenizing: SharedWorker,
        *,
        known: KnownScores | None,
        fingerprint: str,
    ) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._known = known
        self._fingerprint = fingerprint

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score the documents.

        Raises:
            InvalidRequest: a wish is out of the operator's bounds, or the query leaves no room for two documents.
            Overloaded, DeadlineExceeded, ScoringFailed, Unavailable: see `Batcher.admit` and `Ticket.run`.
        """
        order, depth = _wanted(self._scorer.plan, options.windows, len(documents))
        comparisons = Comparisons.among(order[:depth])
        # A part of the comparisons is no order.
        options = replace(options, terms=options.terms.undivided())
        scores = await self._compared(query, documents, comparisons, options)
        return _summed(scores, comparisons, order, depth=depth)

    def estimate(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Estimate:
        """What a request costs at most.

        Raises:
            InvalidRequest: as `score`.
        """
        order, depth = _wanted(self._scorer.plan, options.windows, len(documents))
        return self._estimate(query, documents, Comparisons.among(order[:depth]))

    def _estimate(self, query: str, documents: Sequence[str], comparisons: Comparisons) -> Estimate:
        lengths = np.array(list(map(len, documents)), dtype=np.int64)
        characters = lengths[comparisons.firsts].sum() + lengths[comparisons.seconds].sum()
        return Estimate(
            characters=int(characters) + len(query) * len(comparisons),
            items=len(comparisons),
            longest=self._scorer.max_length,
        )

    async def _compared(
        self, query: str, documents: Sequence[str], comparisons: Comparisons, options: ScoreOptions
    ) -> Scores:
        """The log-odds of each comparison, out of the cache as far as it knows them."""
        if self._known is None:
            return await self._computed(query, documents, comparisons, options)

        async def compute(positions: Sequence[int]) -> Scores:
            return await self._computed(query, documents, comparisons[np.asarray(positions)], options)

        started = perf_counter()
        keys = await self._keys(query, documents, comparisons, options)
        hashed = Timings(cache_s=perf_counter() - started)
        scores = await self._known.complete(keys, compute, options.terms)
        return replace(scores, timings=scores.timings + hashed)

    async def _keys(
        self, query: str, documents: Sequence[str], comparisons: Comparisons, options: ScoreOptions
    ) -> list[bytes]:
        used = np.unique(comparisons.firsts).tolist()
        texts = [documents[index] for index in used]
        of_text = await keys_of(with_options(self._fingerprint, options), query, texts)
        key_of = dict(zip(used, of_text, strict=True))
        keys: list[bytes] = []
        async for span in in_chunks(len(comparisons)):
            part = comparisons[span]
            pairs = zip(part.firsts.tolist(), part.seconds.tolist(), strict=True)
            keys += [comparison_key(key_of[first], key_of[second]) for first, second in pairs]
        return keys

    async def _computed(
        self, query: str, documents: Sequence[str], comparisons: Comparisons, options: ScoreOptions
    ) -> Scores:
        """One trip through the batcher."""
        started = perf_counter()
        items: list[WorkItem[T]] = []
        dropped: list[IntArray] = []
        estimate = self._estimate(query, documents, comparisons)
        async with self._batcher.admit(estimate, options.terms) as ticket:
            for start in range(0, len(comparisons), _COMPARISONS_PER_CALL):
                chunk = comparisons[slice(start, start + _COMPARISONS_PER_CALL)]
                share = share_of(options.terms, [documents[index] for index in np.unique(chunk.seconds).tolist()])
                encoded, lost, part = await self._tokenizing.run(share, self._encode, query, documents, chunk, options)
                ticket.correct(part)
                items += encoded
                dropped.append(lost)
            tokens = np.array([item.cost for item in items], dtype=np.int64)
            tokenized_s = perf_counter() - started
            outcome = await ticket.run(items)
        return Scores(
            values=self._scorer.interpret_comparisons(outcome.results),
            tokens=tokens,
            dropped=np.concatenate(dropped),
            timings=Timings(tokenize_s=tokenized_s, queue_s=outcome.queue_s, inference_s=outcome.inference_s),
        )

    def _encode(
        self, query: str, documents: Sequence[str], comparisons: Comparisons, options: ScoreOptions
    ) -> tuple[list[WorkItem[T]], IntArray, Tokenized]:
        """Blocking."""
        pairs = list(zip(comparisons.firsts.tolist(), comparisons.seconds.tolist(), strict=True))
        encoded = self._scorer.encode_comparisons(
            query,
            documents,
            pairs,
            max_document_tokens=options.max_tokens_per_doc,
            instruction=options.instruction,
            owner=options.terms.caller,
        )
        items = items_of(self._scorer.task, encoded.encodings, scope=options.scope)
        part = tokenized(
            items,
            self._batcher.lengths_of(items),
            characters=[len(query) + len(documents[first]) + len(documents[second]) for first, second in pairs],
            whole=np.flatnonzero(encoded.dropped == 0).tolist(),
        )
        return items, encoded.dropped, part


def _wanted(plan: WindowPlan, wishes: WindowWishes | None, documents: int) -> tuple[IntArray, int]:
    """The indices of all documents, best first, and how many of them are compared."""
    wishes = wishes or WindowWishes()
    wanted = wishes.within(plan)
    if wanted.schedule != plan.schedule:
        raise InvalidRequest(f"this model compares all pairs of documents; schedule must be {plan.schedule!r}")
    return np.array(wishes.order_of(documents), dtype=np.int64), wanted.depth


def _summed(scores: Scores, comparisons: Comparisons, order: IntArray, *, depth: int) -> Scores:
    """The documents' scores from those of comparisons."""
    documents = len(order)
    first_wins = sigmoid(scores.values).astype(np.float64)
    met = np.bincount(comparisons.firsts, minlength=documents) * 2
    values = comparisons.per_document(first_wins, 1 - first_wins, documents) / np.maximum(met, 1)
    others = order[depth:]
    values[others] = values[order[:depth]].min() * np.arange(len(others), 0, -1) / (len(others) + 1)
    dropped = np.zeros(documents, dtype=np.int64)
    np.maximum.at(dropped, comparisons.firsts, scores.dropped)
    # A prompt's tokens are its two documents' in equal parts, so that a request's sum is what the model read.
    half = scores.tokens // 2
    computed = None if scores.cached is None else comparisons.per_document(~scores.cached, ~scores.cached, documents)
    return Scores(
        values=values.astype(np.float32),
        tokens=comparisons.per_document(scores.tokens - half, half, documents).astype(np.int64),
        dropped=dropped,
        # What is not compared has reached no model, and so none of it is out of the cache.
        cached=None if computed is None else (computed == 0) & (met > 0),
        timings=scores.timings,
    )
