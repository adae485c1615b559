"""Finds which parts of the best documents are relevant, if the request asks for that: scores their sentences.

Each sentence is scored as a text of its own by the inner stage, and cached as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.concurrency.worker import in_chunks
from rerankd.domain import (
    NO_FUSION,
    BoolArray,
    IntArray,
    PassagePlan,
    ScoreOptions,
    Scores,
    Side,
    Span,
    SpanWishes,
    Timings,
    Truncation,
)
from rerankd.errors import DeadlineExceeded
from rerankd.pipeline.chunks import chunks, share_of
from rerankd.pipeline.passages import EDGE_TOKENS, reach_of
from rerankd.pipeline.sentences import sentence_windows
from rerankd.pipeline.stage import Stage
from rerankd.scorers.base import PairReader
from rerankd.scorers.beginnings import read_parts
from rerankd.scorers.ranking import Activation

_DOCUMENTS_PER_CALL = 64
_CHARACTERS_PER_CALL = 100_000
# With 32 sentences each: about a millisecond.
_DOCUMENTS_PER_STEP = 32
# As admission believes, before anything is tokenized.
_USUAL_CHARS_PER_TOKEN = 4
_USUAL_CHARS_PER_SENTENCE = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """How sentences are looked for in a document: in its first `tokens`, in windows of at most `length` tokens."""

    tokens: int
    length: int
    limit: int


class SpanStage:
    """Wraps the stages that score a document by itself. `plan` bounds how much of each document is searched."""

    def __init__(
        self,
        inner: Stage,
        reader: PairReader,
        batcher: Intake[Any, Any],
        tokenizing: SharedWorker,
        *,
        plan: PassagePlan,
        activation: Activation,
        sentences: Stage | None = None,
    ) -> None:
        """`sentences` scores those; None: `inner` does, as it scores documents."""
        self._inner = inner
        self._sentences = sentences or inner
        self._reader = reader
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._plan = plan
        self._activation = activation

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given, and the sentences of the best ones.

        Raises:
            RerankError: what the inner stage raises.
        """
        scores = await self._inner.score(query, documents, options)
        if options.spans is None:
            return scores
        best = _best(scores, options.top_n)
        if not len(best):
            return scores
        try:
            return await self._with_spans(scores, best, query, documents, options, options.spans)
        except DeadlineExceeded:
            # The scores are what a partial answer is about.
            if not options.terms.partial:
                raise
            return scores

    async def _with_spans(
        self,
        scores: Scores,
        best: IntArray,
        query: str,
        documents: Sequence[str],
        options: ScoreOptions,
        wishes: SpanWishes,
    ) -> Scores:
        started = perf_counter()
        searched = [documents[index] for index in best.tolist()]
        async with self._batcher.admit(self._estimate(searched), options.terms) as ticket:
            windows = await self._windows(query, searched, options)
            # Sentences that are in the cache cost nothing more, and the others ask for themselves.
            ticket.release_to_ask_again()
        cutting = Timings(tokenize_s=perf_counter() - started)
        texts: list[str] = []
        async for chunk in in_chunks(len(searched), most=_DOCUMENTS_PER_STEP):
            for text, found in zip(searched[chunk], windows[chunk], strict=True):
                texts += [text[start:end] for start, end in found]
        if not texts:
            return scores
        alone = replace(
            options,
            truncation=Truncation.TRUNCATE,
            truncation_side=Side.RIGHT,
            max_tokens_per_doc=None,
            top_n=None,
            spans=None,
            prune=None,
            fusion=NO_FUSION,
            queries=None,
        )
        read = await self._sentences.score(query, texts, alone)
        relevance = self._activation(read.values).astype(np.float64)
        relevant = _relevant(read, relevance, wishes)
        spans = np.full(len(documents), None, dtype=np.object_)
        tokens = scores.tokens.copy()
        place = 0
        async for chunk in in_chunks(len(best), most=_DOCUMENTS_PER_STEP):
            for index, found in zip(best[chunk].tolist(), windows[chunk], strict=True):
                part = slice(place, place + len(found))
                place += len(found)
                tokens[index] += read.tokens[part].sum()
                spans[index] = _spans(found, relevance[part], relevant[part], wishes)
        return replace(scores, spans=spans, tokens=tokens, timings=scores.timings + cutting + read.timings)

    def _estimate(self, documents: Sequence[str]) -> Estimate:
        most = self._plan.max_passages * self._reader.max_length * _USUAL_CHARS_PER_TOKEN
        characters = [min(len(document), most) for document in documents]
        return Estimate(
            characters=sum(characters),
            items=sum(min(self._plan.max_passages, 1 + length // _USUAL_CHARS_PER_SENTENCE) for length in characters),
            longest=self._reader.max_length,
        )

    async def _windows(
        self, query: str, documents: Sequence[str], options: ScoreOptions
    ) -> list[list[tuple[int, int]]]:
        terms = options.terms
        room = await self._tokenizing.run(share_of(terms, [query]), self._reader.room, query, options.instruction)
        length = max(1, min(room - EDGE_TOKENS, options.max_tokens_per_doc or room))
        limit = self._plan.max_passages
        tokens = min(limit * length, options.max_tokens_per_doc or limit * length)
        search = _Search(tokens=tokens, length=length, limit=limit)
        windows: list[list[tuple[int, int]]] = []
        for span, share in chunks(documents, terms, most=_DOCUMENTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            windows += await self._tokenizing.run(share, _search, self._reader, documents[span], search)
        return windows


def _best(scores: Scores, top_n: int | None) -> IntArray:
    """The documents that the caller sees and that have a score, best first."""
    candidates = np.flatnonzero(scores.known)
    return candidates[np.argsort(-scores.merits[candidates], kind="stable")][:top_n]


def _search(reader: PairReader, documents: Sequence[str], search: _Search) -> list[list[tuple[int, int]]]:
    """Blocking."""
    parts = read_parts(
        documents, reader.edges, enough=lambda edges: edges.tokens >= search.tokens, reach=reach_of(search.tokens)
    )
    return [
        sentence_windows(document, part.content.first(search.tokens), length=search.length, limit=search.limit)
        for document, part in zip(documents, parts, strict=True)
    ]


def _relevant(read: Scores, relevance: NDArray[np.float64], wishes: SpanWishes) -> BoolArray:
    """Which sentences have a score, and one above the threshold."""
    above: BoolArray = relevance > wishes.threshold
    if read.blank is not None:
        above &= ~read.blank
    if read.scored is not None:
        above &= read.scored
    return above


def _spans(
    windows: Sequence[tuple[int, int]], relevance: NDArray[np.float64], relevant: BoolArray, wishes: SpanWishes
) -> tuple[Span, ...]:
    places = np.flatnonzero(relevant)
    best = places[np.argsort(-relevance[places], kind="stable")][: wishes.most]
    return tuple(Span(windows[place][0], windows[place][1], float(relevance[place])) for place in best.tolist())
