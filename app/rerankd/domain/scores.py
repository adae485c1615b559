"""What is known of a query's documents once they are scored, and how stages rearrange it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rerankd.domain.arrays import BoolArray, FloatArray, IntArray


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageScores:
    """Which part of each document decided its score: characters `starts` to `ends` of its text, out of `counts`
    passages that were read. Each has shape [documents].
    """

    starts: IntArray
    ends: IntArray
    counts: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The raw scores of one query's documents, one array element a document, in request order.

    Arrays and not objects: a request has up to thousands of documents (docs/adr/0002).
    `values` are raw model scores (logits); `tokens` counts the tokens that the model read for a pair,
    `dropped` the document tokens that truncation cut off. Documents that are `cached` did not reach the model this
    time; None where there is no cache. Of `blank` documents the model would see nothing: they have no score, and a
    value below all others; None: there are none. Documents that are not `scored` had no score when the deadline came,
    and their value means nothing; None: all have one. `passages` is None where documents were read whole. A listwise
    stage's values say the order and nothing else; `unordered` counts its windows of which the model said nothing, and
    whose candidates kept the order that they came in. `placed_by` names, for a cascade, the model that gave each
    document its place; None for one that kept the request's. `query_dropped` counts the query's tokens that were
    not read.
    """

    values: FloatArray
    tokens: IntArray
    dropped: IntArray
    cached: BoolArray | None = None
    blank: BoolArray | None = None
    scored: BoolArray | None = None
    passages: PassageScores | None = None
    timings: Timings = field(default_factory=Timings)
    placed_by: Sequence[str | None] | None = None
    unordered: int = 0
    query_dropped: int = 0
