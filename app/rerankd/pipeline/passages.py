"""Reads long documents in passages, so that no part of one is lost and no call fails because one is long.

Each passage is scored as a text of its own by the inner stage, and cached as one: entries cannot mix policies, and
other windows over the same text share what they have in common. Passages and MaxP, FirstP: Dai and Callan, "Deeper Text
Understanding for IR with Contextual Neural Language Modeling", SIGIR 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from rerankd.batching.admission import Estimate
from rerankd.batching.ticket import Intake
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import (
    FloatArray,
    IntArray,
    PassagePlan,
    PassageScores,
    ScoreOptions,
    Scores,
    Side,
    Timings,
    Truncation,
)
from rerankd.pipeline.chunks import chunks, share_of
from rerankd.pipeline.passage_windows import aggregate, last_window, windows
from rerankd.pipeline.query_words import overlaps, words_of
from rerankd.pipeline.stage import Stage
from rerankd.scorers.base import Edges, PairReader
from rerankd.scorers.beginnings import Part, Reach, read_parts
from rerankd.scorers.visible import is_visible

_DOCUMENTS_PER_CALL = 64
_CHARACTERS_PER_CALL = 100_000
# Only as much of a document is tokenized as its passages can take: this many characters for each token, and twice that
# if it turns out to have fewer tokens. The tokens of the rest are estimated.
_CHARS_PER_TOKEN = 8
_LEAST_CHARS = 65_536
_SPARE_TOKENS = 64
# As admission believes, before anything is tokenized.
_USUAL_CHARS_PER_TOKEN = 4
# A passage read by itself may have a few tokens more than inside of its document, at its two edges.
EDGE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document's passages as (start, end) in characters and in tokens, and how many of its tokens are in none."""

    spans: Sequence[tuple[int, int]]
    windows: Sequence[tuple[int, int]]
    dropped: int

    def only(self, chosen: Sequence[int]) -> "_Cut":
        """With these passages."""
        windows = [self.windows[index] for index in chosen]
        unread = _covered(self.windows) - _covered(windows)
        return _Cut([self.spans[index] for index in chosen], windows, self.dropped + unread)


@dataclass(frozen=True, slots=True)
class WordSelector:
    """Prefers passages that have many of the query's words, the rare ones of a document first."""

    tokenizing: SharedWorker

    async def values(
        self, query: str, passages: Sequence[str], counts: Sequence[int], options: ScoreOptions
    ) -> FloatArray:
        """How much each passage speaks of the query's words."""
        words = words_of(query)
        values: list[FloatArray] = []
        start = 0
        for count in counts:
            part = passages[start : start + count]
            start += count
            values.append(await self.tokenizing.run(share_of(options.terms, part), overlaps, words, part))
        return np.concatenate(values)


class PassageStage:
    """Wraps a stage whose scores depend on the pair alone."""

    def __init__(
        self,
        inner: Stage,
        reader: PairReader,
        batcher: Intake[Any, Any],
        tokenizing: SharedWorker,
        *,
        plan: PassagePlan,
        truncation: Truncation = Truncation.TRUNCATE,
    ) -> None:
        """`plan` and `truncation` are the operator's; a request may wish otherwise."""
        self._inner = inner
        self._reader = reader
        self._batcher = batcher
        self._tokenizing = tokenizing
        self._plan = plan
        self._truncation = truncation
        self._words = WordSelector(tokenizing)

    async def score(self, query: str, documents: Sequence[str], options: ScoreOptions) -> Scores:
        """Score every document, in the order given: whole, by its end, or by its passages.

        Raises:
            RerankError: what the inner stage raises.
        """
        truncation = options.truncation or self._truncation
        from_the_end = truncation is Truncation.TRUNCATE and options.truncation_side is Side.LEFT
        if truncation is not Truncation.CHUNK and not from_the_end:
            return await self._inner.score(query, documents, options)
        started = perf_counter()
        plan = options.passages.within(self._plan)
        estimate = self._estimate(documents, plan, limit=1 if from_the_end else plan.max_passages)
        async with self._batcher.admit(estimate, options.terms) as ticket:
            cuts = await self._cut(query, documents, options, None if from_the_end else plan)
            # Passages that are in the cache cost nothing more, and the others ask for themselves.
            ticket.release_to_ask_again()
        if plan.select is not None:
            cuts = await self._select(query, documents, cuts, plan.select, options)
        cutting = Timings(tokenize_s=perf_counter() - started)
        texts = [document[start:end] for document, cut in zip(documents, cuts, strict=True) for start, end in cut.spans]
        whole = replace(options, truncation=Truncation.TRUNCATE, truncation_side=Side.RIGHT, max_tokens_per_doc=None)
        return _gathered(await self._inner.score(query, texts, whole), cuts, plan, cutting)

    async def _select(
        self, query: str, documents: Sequence[str], cuts: Sequence[_Cut], most: int, options: ScoreOptions
    ) -> list[_Cut]:
        """At most this many passages of each document: the most promising ones, in their order."""
        long = [index for index, cut in enumerate(cuts) if len(cut.spans) > most]
        selected = list(cuts)
        if not long:
            return selected
        counts = [len(cuts[index].spans) for index in long]
        texts = [documents[index][start:end] for index in long for start, end in cuts[index].spans]
        selector = options.selector or self._words
        values = await selector.values(query, texts, counts, options)
        for index, own in zip(long, np.split(values, np.cumsum(counts)[:-1]), strict=True):
            best = np.argsort(-own, kind="stable")[:most]
            selected[index] = cuts[index].only(np.sort(best).tolist())
        return selected

    def _estimate(self, documents: Sequence[str], plan: PassagePlan, *, limit: int) -> Estimate:
        """By the number of characters, since nothing is tokenized yet."""
        limit = min(limit, plan.select or limit)
        length = plan.length(room=self._reader.max_length)
        per_passage = length * _USUAL_CHARS_PER_TOKEN
        return Estimate(
            characters=sum(min(len(document), limit * per_passage) for document in documents),
            items=sum(min(limit, 1 + len(document) // per_passage) for document in documents),
            longest=length,
        )

    async def _cut(
        self, query: str, documents: Sequence[str], options: ScoreOptions, plan: PassagePlan | None
    ) -> list[_Cut]:
        """Into passages, or, without a plan, into one at the end."""
        terms = options.terms
        room = await self._tokenizing.run(share_of(terms, [query]), self._reader.room, query, options.instruction)
        cuts: list[_Cut] = []
        for span, share in chunks(documents, terms, most=_DOCUMENTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            cuts += await self._tokenizing.run(
                share, _cut_all, self._reader, documents[span], plan, room, options.max_tokens_per_doc
            )
        return cuts


def _gathered(scores: Scores, cuts: Sequence[_Cut], plan: PassagePlan, cutting: Timings) -> Scores:
    """The documents' scores from those of all their passages."""
    counts = np.array([len(cut.spans) for cut in cuts], dtype=np.int64)
    aggregated = aggregate(scores.values, counts, aggregation=plan.aggregation, top_k=plan.top_k)
    spans: IntArray = np.array([span for cut in cuts for span in cut.spans], dtype=np.int64)[aggregated.best]
    joined = scores.joined(counts, aggregated.values)
    return replace(
        joined,
        dropped=joined.dropped + np.array([cut.dropped for cut in cuts], dtype=np.int64),
        passages=PassageScores(starts=spans[:, 0], ends=spans[:, 1], counts=counts),
        remarks=None if scores.remarks is None else scores.remarks[aggregated.best],
        timings=cutting + joined.timings,
    )


def _cut_all(
    reader: PairReader, documents: Sequence[str], plan: PassagePlan | None, room: int, max_tokens: int | None
) -> list[_Cut]:
    """Cut documents up by tokens. Blocking."""
    if plan is None:
        return _read_ends(reader, documents, length=min(room, max_tokens or room))
    length = plan.length(room=room)
    wanted = _Windows(
        fits=length,
        length=min(length, room - EDGE_TOKENS),
        overlap=plan.overlap_of(length),
        limit=plan.max_passages,
        max_tokens=max_tokens,
    )
    return _read(reader, documents, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """How documents with more than `fits` tokens are cut into windows of `length`."""

    fits: int
    length: int
    overlap: int
    limit: int
    max_tokens: int | None

    @property
    def most_tokens(self) -> int:
        most = self.limit * self.length
        return most if self.max_tokens is None else min(most, self.max_tokens)


def _read(reader: PairReader, documents: Sequence[str], wanted: _Windows) -> list[_Cut]:
    beginnings = read_parts(
        documents,
        reader.edges,
        enough=lambda edges: edges.tokens >= wanted.most_tokens + _SPARE_TOKENS,
        reach=reach_of(wanted.most_tokens),
    )
    return [_passages(*pair, wanted) for pair in zip(documents, beginnings, strict=True)]


def reach_of(tokens: int) -> Reach:
    """How much of a text is looked at for that many tokens."""
    return Reach.of(tokens, first=_CHARS_PER_TOKEN, most=2 * _CHARS_PER_TOKEN, least=_LEAST_CHARS)


def _passages(document: str, beginning: Part[Edges], wanted: _Windows) -> _Cut:
    edges = beginning.content
    tokens = edges.tokens if wanted.max_tokens is None else min(edges.tokens, wanted.max_tokens)
    found = [(0, tokens)]
    if tokens > wanted.fits:
        found = windows(edges, tokens=tokens, length=wanted.length, overlap=wanted.overlap, limit=wanted.limit)
    spans = [(int(edges.characters[start]), int(edges.characters[end])) for start, end in found]
    # A blank passage says nothing about its document, whatever its score.
    visible = [index for index, (start, end) in enumerate(spans) if is_visible(document[start:end])] or [0]
    dropped = edges.tokens + beginning.beyond(edges.tokens) - found[-1][1]
    return _Cut([spans[index] for index in visible], [found[index] for index in visible], dropped)


def _covered(windows: Sequence[tuple[int, int]]) -> int:
    """How many tokens are in windows, which are in order and may overlap."""
    covered = last = 0
    for start, end in windows:
        covered += end - max(start, last)
        last = end
    return covered


def _read_ends(reader: PairReader, documents: Sequence[str], *, length: int) -> list[_Cut]:
    endings = read_parts(
        documents,
        reader.edges,
        enough=lambda edges: edges.tokens >= length + _SPARE_TOKENS,
        reach=reach_of(length),
        side=Side.LEFT,
    )
    cuts = []
    for document, ending in zip(documents, endings, strict=True):
        edges = ending.content
        start, _ = last_window(edges, length=length)
        begins = ending.unread + int(edges.characters[start])
        cuts.append(_Cut([(begins, len(document))], [(0, length)], start + ending.beyond(edges.tokens)))
    return cuts
