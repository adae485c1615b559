"""Prunes documents, if the request asks for that: says which of their sentences a reader who asks the query needs.

A document is read in blocks of whole sentences, and each block is scored and cached as a text of its own. Chirkova et
al., "Provence: efficient and robust context pruning for retrieval-augmented generation", ICLR 2025.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final

import numpy as np

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import (
    Aggregation,
    FloatArray,
    IntArray,
    PassagePlan,
    PassageScores,
    PruneWishes,
    ScoreOptions,
    Scores,
    Side,
    SpanArray,
    Timings,
    Truncation,
)
from rerankd.errors import InvalidRequest
from rerankd.pipeline.chunks import chunks, share_of
from rerankd.pipeline.kept_sentences import Block, are_kept, blocks_of, joined_spans
from rerankd.pipeline.passage_windows import aggregate
from rerankd.pipeline.passages import reach_of
from rerankd.pipeline.stage import Stage
from rerankd.scorers.base import PairReader
from rerankd.scorers.beginnings import read_parts

_DOCUMENTS_PER_CALL: Final = 64
_CHARACTERS_PER_CALL: Final = 100_000
# As admission believes, before anything is tokenized.
_USUAL_CHARS_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document's blocks, where the tokens of each lie in its sentences, and how many tokens are in none of them."""

    blocks: Sequence[Block]
    bounds: Sequence[IntArray]
    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """How documents are cut: see `blocks_of`. Tokens beyond `most` are not read."""

    length: int
    limit: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Marking:
    """A stage whose scores hold marks, and the threshold of requests that name none."""

    stage: Stage
    threshold: float


class PruneStage:
    """Wraps the stages that score a document by itself, for requests that prune nothing. The others go to `marking`."""

    def __init__(
        self,
        inner: Stage,
        marking: Marking,
        reader: PairReader,
        batcher: Intake[Any, Any],
        tokenizing: SharedWorker,
        *,
        plan: PassagePlan,
        truncation: Truncation,
    ) -> None:
        self._inner = inner
        self._marking = marking
        self._reader = reader
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._plan = plan
        self._truncation = truncation

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given, and say which spans of each are kept. A document's score is its
        first block's, or, read in passages, made of all blocks'.

        Raises:
            InvalidRequest: the request wants to read documents from their ends.
            RerankError: what the inner stages raise.
        """
        if options.prune is None:
            return await self._inner.score(query, documents, options)
        if options.truncation_side is Side.LEFT:
            raise InvalidRequest("documents are pruned from their beginning; leave truncation_side or prune out")
        started = perf_counter()
        plan = options.passages.within(self._plan)
        async with self._batcher.admit(self._estimate(documents, plan), options.terms) as ticket:
            cuts = await self._cut(query, documents, options, plan)
            # Blocks that are in the cache cost nothing more, and the others ask for themselves.
            ticket.release_to_ask_again()
        cutting = Timings(tokenize_s=perf_counter() - started)
        truncation = options.truncation or self._truncation
        if truncation is Truncation.ERROR and any(len(cut.blocks) > 1 or cut.dropped for cut in cuts):
            return _refused(cuts, cutting)
        texts = [
            document[block.start : block.end]
            for document, cut in zip(documents, cuts, strict=True)
            for block in cut.blocks
        ]
        whole = replace(options, truncation=Truncation.TRUNCATE, max_tokens_per_doc=None)
        read = await self._marking.stage.score(query, texts, whole)
        chunked = truncation is Truncation.CHUNK
        scores = _gathered(read, cuts, plan if chunked else replace(plan, aggregation=Aggregation.FIRST))
        started = perf_counter()
        kept = await self._kept(documents, cuts, read, options.prune, options)
        rounding = Timings(tokenize_s=perf_counter() - started)
        passages = scores.passages if chunked else None
        return replace(scores, kept=kept, passages=passages, timings=scores.timings + cutting + rounding)

    def _estimate(self, documents: Sequence[str], plan: PassagePlan) -> Estimate:
        """By the number of characters, since nothing is tokenized yet."""
        per_block = self._reader.max_length * _USUAL_CHARS_PER_TOKEN
        return Estimate(
            characters=sum(min(len(document), plan.max_passages * per_block) for document in documents),
            items=sum(min(plan.max_passages, 1 + len(document) // per_block) for document in documents),
            longest=self._reader.max_length,
        )

    async def _cut(self, query: str, documents: Sequence[str], options: ScoreOptions, plan: PassagePlan) -> list[_Cut]:
        terms = options.terms
        room = await self._tokenizing.run(share_of(terms, [query]), self._reader.room, query, options.instruction)
        reading = _Reading(length=room, limit=plan.max_passages, most=options.max_tokens_per_doc)
        cuts: list[_Cut] = []
        for span, share in chunks(documents, terms, most=_DOCUMENTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            cuts += await self._tokenizing.run(share, _cut_all, self._reader, documents[span], reading)
        return cuts

    async def _kept(
        self,
        documents: Sequence[str],
        cuts: Sequence[_Cut],
        read: Scores,
        wishes: PruneWishes,
        options: ScoreOptions,
    ) -> SpanArray:
        """A tuple of spans for each document; None for one that was not read in time."""
        threshold = self._marking.threshold if wishes.threshold is None else wishes.threshold
        kept = np.full(len(documents), None, dtype=np.object_)
        place = 0
        for span, share in chunks(documents, options.terms, most=_DOCUMENTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            some = cuts[span]
            count = sum(len(cut.blocks) for cut in some)
            log_odds = _log_odds(read, slice(place, place + count))
            place += count
            found = await self._tokenizing.run(
                share, _round_all, some, log_odds, threshold, keep_first=wishes.always_select_title
            )
            for index, spans in enumerate(found, start=span.start):
                kept[index] = spans
        return kept


def _cut_all(reader: PairReader, documents: Sequence[str], reading: _Reading) -> list[_Cut]:
    """Blocking."""
    most = reading.limit * reading.length
    most = most if reading.most is None else min(most, reading.most)
    parts = read_parts(documents, reader.edges, enough=lambda edges: edges.tokens > most, reach=reach_of(most))
    cuts = []
    for document, part in zip(documents, parts, strict=True):
        edges = part.content if reading.most is None else part.content.first(reading.most)
        text = document[: int(edges.characters[-1])]
        blocks = blocks_of(text, edges, length=reading.length, limit=reading.limit)
        blocks = blocks or [Block(0, len(text), [(0, len(text))])]
        if len(blocks) == 1:
            own, read = [edges.first(edges.tokens)], edges.tokens
        else:
            # Cut out of a text, a block may have other tokens at its edges.
            own = reader.edges([text[block.start : block.end] for block in blocks])
            read = int(np.searchsorted(edges.characters[1:], blocks[-1].end)) + 1
        bounds = [block.token_bounds(one) for block, one in zip(blocks, own, strict=True)]
        unread = part.content.tokens - read + part.beyond(part.content.tokens)
        cuts.append(_Cut(blocks, bounds, max(0, unread)))
    return cuts


def _round_all(
    cuts: Sequence[_Cut], log_odds: Sequence[FloatArray | None], threshold: float, *, keep_first: bool
) -> list[tuple[tuple[int, int], ...] | None]:
    """The spans of each document that are kept. Blocking."""
    found: list[tuple[tuple[int, int], ...] | None] = []
    place = 0
    for cut in cuts:
        marks = log_odds[place : place + len(cut.blocks)]
        place += len(cut.blocks)
        kept: list[bool] = []
        for bounds, tokens in zip(cut.bounds, marks, strict=True):
            if tokens is None:
                break
            chosen = are_kept(tokens, bounds, threshold=threshold)
            # A title is kept beside what it is the title of, and not alone.
            if keep_first and not kept and chosen.any():
                chosen[0] = True
            kept += chosen.tolist()
        sentences = [sentence for block in cut.blocks for sentence in block.sentences]
        found.append(joined_spans(sentences, kept) if len(kept) == len(sentences) else None)
    return found


def _log_odds(read: Scores, span: slice) -> list[FloatArray | None]:
    return [] if read.marks is None else read.marks[span].tolist()


def _gathered(read: Scores, cuts: Sequence[_Cut], plan: PassagePlan) -> Scores:
    """The documents' scores from those of all their blocks."""
    counts = np.array([len(cut.blocks) for cut in cuts], dtype=np.int64)
    aggregated = aggregate(read.values, counts, aggregation=plan.aggregation, top_k=plan.top_k)
    spans = np.array([(block.start, block.end) for cut in cuts for block in cut.blocks])[aggregated.best]
    joined = read.joined(counts, aggregated.values)
    return replace(
        joined,
        dropped=joined.dropped + np.array([cut.dropped for cut in cuts], dtype=np.int64),
        passages=PassageScores(starts=spans[:, 0], ends=spans[:, 1], counts=counts),
    )


def _refused(cuts: Sequence[_Cut], cutting: Timings) -> Scores:
    """Nothing was scored, since not all documents can be read at once: `dropped` says which."""
    beyond = [cut.dropped + sum(int(bounds[-1]) for bounds in cut.bounds[1:]) for cut in cuts]
    return Scores(
        values=np.full(len(cuts), np.nan, dtype=np.float32),
        tokens=np.zeros(len(cuts), dtype=np.int64),
        dropped=np.array(beyond, dtype=np.int64),
        timings=cutting,
    )
