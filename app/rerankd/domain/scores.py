"""What is known of a query's documents once they are scored, and how stages rearrange it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rerankd.domain.arrays import BoolArray, FloatArray, IntArray, NameArray, SpanArray
from rerankd.domain.fusion import Fused

Kind = TypeVar("Kind", np.float32, np.int64, np.bool_, np.object_)


class _Rearrange(Protocol):
    """Gives each document its element of an array; `missing` is for documents that the array does not know."""

    def __call__(self, array: NDArray[Kind], *, missing: object) -> NDArray[Kind]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of wall time that a request spent in each part of the scoring path."""

    cache_s: float = 0.0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0

    def __add__(self, other: "Timings") -> "Timings":
        return Timings(
            cache_s=self.cache_s + other.cache_s,
            tokenize_s=self.tokenize_s + other.tokenize_s,
            queue_s=self.queue_s + other.queue_s,
            inference_s=self.inference_s + other.inference_s,
        )

    def beside(self, other: "Timings") -> "Timings":
        """Of two parts of a request that ran at the same time."""
        return Timings(
            cache_s=max(self.cache_s, other.cache_s),
            tokenize_s=max(self.tokenize_s, other.tokenize_s),
            queue_s=max(self.queue_s, other.queue_s),
            inference_s=max(self.inference_s, other.inference_s),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageScores:
    """Which part of each document decided its score: characters `starts` to `ends` of its text, out of `counts`
    passages that were read. Each has shape [documents].
    """

    starts: IntArray
    ends: IntArray
    counts: IntArray

    @classmethod
    def none(cls, documents: int) -> "PassageScores":
        """Of documents that were not read in passages."""
        zeros = np.zeros(documents, dtype=np.int64)
        return cls(starts=zeros, ends=zeros, counts=zeros)

    @classmethod
    def concatenate(cls, parts: Sequence["PassageScores"]) -> "PassageScores":
        return cls(
            starts=np.concatenate([part.starts for part in parts]),
            ends=np.concatenate([part.ends for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
        )

    def rearranged(self, rearrange: _Rearrange) -> "PassageScores":
        return PassageScores(
            starts=rearrange(self.starts, missing=0),
            ends=rearrange(self.ends, missing=0),
            counts=rearrange(self.counts, missing=0),
        )


class Span(NamedTuple):
    """Characters `start` to `end` of a document's text, and the relevance of what they say."""

    start: int
    end: int
    relevance: float


class Remark(NamedTuple):
    """What a model said of a document beside its score: the beginning of its reason, and its grade in [0, 1] by each
    criterion of a rubric.
    """

    reason: str
    grades: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The raw scores of one query's documents, in request order: arrays with one element a document (docs/adr/0002).

    Only stages that read a model's outputs build one from arrays. All others rearrange what they are given.

    values: the raw scores (logits). Those of a listwise stage only say the order.
    tokens: how many tokens the model read for the document.
    dropped: how many of the document's tokens were cut off.
    cached: which documents did not reach the model this time. None: all did.
    blank: which documents show the model nothing. Their value is below all others. None: none are blank.
    scored: which documents had a score before the deadline. The values of the others mean nothing. None: all had one.
    passages: which passage decided. None: documents were read whole.
    placed_by: the model of a cascade that gave the document its place, None for the request's own order.
    unordered: how many windows or comparisons the model said nothing about. Their candidates kept their order.
    ungraded: how many answers of the model about a document had no grade. A document without any other has no score.
    comparisons: how many comparisons of documents were answered, by the model or out of the cache.
    settled: how many of the first places were final when the deadline came. None: all that were asked for.
    query_dropped: how many of the query's tokens were not read.
    spans: a tuple of `Span`s for each document, the most relevant first. None: nobody looked for any.
    marks: the log-odds that each token of a document is kept, shape [its tokens]. None: nobody asked.
    kept: a tuple of (start, end) for each document, the characters that are left of it. None: nothing was pruned.
    skipped: how many documents were not read because others promised more.
    cuts: how many documents each member of a cascade read, by its name, where the deadline decided. None: it did not.
    remarks: a `Remark` for each document, None where there is none. None: the model makes none.
    fused: the scores that say the order in place of `values`. None: `values` do. Rearranged scores have none.
    """

    values: FloatArray
    tokens: IntArray
    dropped: IntArray
    cached: BoolArray | None = None
    blank: BoolArray | None = None
    scored: BoolArray | None = None
    passages: PassageScores | None = None
    timings: Timings = field(default_factory=Timings)
    placed_by: NameArray | None = None
    unordered: int = 0
    ungraded: int = 0
    comparisons: int = 0
    settled: int | None = None
    skipped: int = 0
    cuts: Mapping[str, int] | None = None
    query_dropped: int = 0
    spans: SpanArray | None = None
    marks: SpanArray | None = None
    kept: SpanArray | None = None
    remarks: SpanArray | None = None
    fused: Fused | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def known(self) -> BoolArray:
        """Which documents have a score: they are not blank, and were scored in time."""
        known = np.isfinite(self.values)
        if self.blank is not None:
            known &= ~self.blank
        if self.scored is not None:
            known &= self.scored
        return known

    @property
    def merits(self) -> FloatArray | NDArray[np.float64]:
        """What says the order: higher is better."""
        return self.values if self.fused is None else self.fused.values

    @classmethod
    def unread(cls, documents: int) -> "Scores":
        """Of documents that no model has read: `reread` adds what models say."""
        return cls(
            values=np.zeros(documents, dtype=np.float32),
            tokens=np.zeros(documents, dtype=np.int64),
            dropped=np.zeros(documents, dtype=np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """The scores of several lists of documents, one after the other. What was spent on them adds up."""
        if len(parts) == 1:
            return parts[0]
        passages = [part.passages or PassageScores.none(len(part)) for part in parts]
        sizes = [len(part) for part in parts]
        return cls(
            values=np.concatenate([part.values for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            dropped=np.concatenate([part.dropped for part in parts]),
            cached=_end_to_end([part.cached for part in parts], sizes, missing=False),
            blank=_end_to_end([part.blank for part in parts], sizes, missing=False),
            scored=_end_to_end([part.scored for part in parts], sizes, missing=True),
            passages=PassageScores.concatenate(passages) if any(part.passages for part in parts) else None,
            timings=sum((part.timings for part in parts), start=Timings()),
            placed_by=_end_to_end([part.placed_by for part in parts], sizes, missing=None),
            unordered=sum(part.unordered for part in parts),
            ungraded=sum(part.ungraded for part in parts),
            comparisons=sum(part.comparisons for part in parts),
            skipped=sum(part.skipped for part in parts),
            query_dropped=max(part.query_dropped for part in parts),
            spans=_end_to_end([part.spans for part in parts], sizes, missing=None),
            marks=_end_to_end([part.marks for part in parts], sizes, missing=None),
            kept=_end_to_end([part.kept for part in parts], sizes, missing=None),
            remarks=_end_to_end([part.remarks for part in parts], sizes, missing=None),
        )

    def take(self, positions: IntArray) -> "Scores":
        """The scores of the documents at these positions; one may be there several times."""
        if len(positions) == len(self) and (positions == np.arange(len(self))).all():
            return self

        def taken(array: NDArray[Kind], *, missing: object) -> NDArray[Kind]:
            del missing
            return array[positions]

        return self._rearranged(taken, below=0.0)

    def scatter(self, positions: IntArray, *, documents: int) -> "Scores":
        """The scores of `documents` documents: these are at `positions`, and all others are blank."""

        def spread(array: NDArray[Kind], *, missing: object) -> NDArray[Kind]:
            wide = np.full(documents, missing, dtype=array.dtype)
            wide[positions] = array
            return wide

        blank = np.ones(documents, dtype=np.bool_)
        blank[positions] = False if self.blank is None else self.blank
        return replace(self._rearranged(spread, below=self.values.min(initial=0) - 1), blank=blank)

    def reread(self, positions: IntArray, by: "Scores") -> "Scores":
        """The scores once the documents at these positions were read again. Their values are the new ones, and what was
        spent on them adds up; which passage decided, and which spans are relevant, says nothing any more.
        """
        values, tokens, dropped = self.values.copy(), self.tokens.copy(), self.dropped.copy()
        values[positions] = by.values
        tokens[positions] += by.tokens
        dropped[positions] = np.maximum(dropped[positions], by.dropped)
        cached, scored = _written(self.cached, len(self), missing=False), _written(self.scored, len(self), missing=True)
        blank, placed_by = (
            _written(self.blank, len(self), missing=False),
            _written(self.placed_by, len(self), missing=None),
        )
        # Nothing was read of a document without tokens, and so nothing of it has reached a model before.
        cached[positions] |= self.tokens[positions] == 0
        cached[positions] &= _written(by.cached, len(by), missing=False)
        blank[positions] |= _written(by.blank, len(by), missing=False)
        scored[positions] = _written(by.scored, len(by), missing=True)
        placed_by[positions] = _written(by.placed_by, len(by), missing=None)
        remarks = self.remarks
        if remarks is not None or by.remarks is not None:
            remarks = _written(remarks, len(self), missing=None)
            remarks[positions] = _written(by.remarks, len(by), missing=None)
        return Scores(
            values=values,
            tokens=tokens,
            dropped=dropped,
            cached=cached,
            blank=blank,
            scored=scored,
            placed_by=placed_by,
            remarks=remarks,
            timings=self.timings + by.timings,
            unordered=self.unordered + by.unordered,
            ungraded=self.ungraded + by.ungraded,
            comparisons=self.comparisons + by.comparisons,
            skipped=self.skipped + by.skipped,
            cuts=by.cuts or self.cuts,
            query_dropped=max(self.query_dropped, by.query_dropped),
        )

    def joined(self, counts: IntArray, values: FloatArray) -> "Scores":
        """The scores of documents from those of their parts, which stand one after the other, `counts` of each and one
        at least. A document is cached, scored or blank when all of its parts are: the best may be among the others.
        """
        firsts = np.cumsum(counts) - counts
        return replace(
            self,
            values=values,
            tokens=np.add.reduceat(self.tokens, firsts),
            dropped=np.add.reduceat(self.dropped, firsts),
            cached=None if self.cached is None else np.logical_and.reduceat(self.cached, firsts),
            blank=None if self.blank is None else np.logical_and.reduceat(self.blank, firsts),
            scored=None if self.scored is None else np.logical_and.reduceat(self.scored, firsts),
            placed_by=None if self.placed_by is None else self.placed_by[firsts],
            passages=None,
            spans=None,
            marks=None,
            kept=None,
            remarks=None,
            fused=None,
        )

    def _rearranged(self, rearrange: _Rearrange, *, below: float) -> "Scores":
        return replace(
            self,
            values=rearrange(self.values, missing=below),
            tokens=rearrange(self.tokens, missing=0),
            dropped=rearrange(self.dropped, missing=0),
            cached=None if self.cached is None else rearrange(self.cached, missing=False),
            blank=None if self.blank is None else rearrange(self.blank, missing=False),
            scored=None if self.scored is None else rearrange(self.scored, missing=True),
            placed_by=None if self.placed_by is None else rearrange(self.placed_by, missing=None),
            passages=None if self.passages is None else self.passages.rearranged(rearrange),
            spans=None if self.spans is None else rearrange(self.spans, missing=None),
            marks=None if self.marks is None else rearrange(self.marks, missing=None),
            kept=None if self.kept is None else rearrange(self.kept, missing=None),
            remarks=None if self.remarks is None else rearrange(self.remarks, missing=None),
            fused=None,
        )


def _written(array: NDArray[Kind] | None, documents: int, *, missing: bool | None) -> NDArray[Kind]:
    """An array of its own for what may not be written down; `missing` is what its absence says of every document."""
    return np.full(documents, missing) if array is None else array.copy()


def _end_to_end(
    arrays: Sequence[NDArray[Kind] | None], sizes: Sequence[int], *, missing: bool | None
) -> NDArray[Kind] | None:
    if all(array is None for array in arrays):
        return None
    return np.concatenate([_written(array, size, missing=missing) for array, size in zip(arrays, sizes, strict=True)])
