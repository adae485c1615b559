"""The nouns of reranking. Frozen, and ignorant of HTTP, threads and storage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Encoding:
    """The token ids of one sequence, shape [length]. Ids from `boundary` on belong to segment 1."""

    ids: IntArray
    boundary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """What a caller asks for, whatever the dialect: `documents` are the texts that the model reads."""

    query: str
    documents: Sequence[str]
    model: str | None = None
    top_n: int | None = None
    max_tokens_per_doc: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a request's work stands among that of others.

    `caller` names whose work it is (an API key's name). Of one caller's requests those with the lower `priority` go
    first, 0 to 999; `urgent` work goes before everything that waits and is never refused. `deadline` is a moment on the
    clock of `time.perf_counter`; when it comes, a `partial` answer holds what is scored by then.
    """

    caller: str = ""
    priority: int = 0
    urgent: bool = False
    deadline: float = inf
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What a stage must know beside the texts."""

    max_tokens_per_doc: int | None = None
    caller: str = ""
    priority: int = 0
    urgent: bool = False
    deadline: float = inf
    partial: bool = False

    @property
    def terms(self) -> Terms:
        return Terms(
            caller=self.caller,
            priority=self.priority,
            urgent=self.urgent,
            deadline=self.deadline,
            partial=self.partial,
        )


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
class Scores:
    """The raw scores of one query's documents, one array element a document, in request order.

    Arrays and not objects: a request has up to thousands of documents (docs/adr/0002).
    `values` are raw model scores (logits); `tokens` counts the tokens that the model read for a pair,
    `dropped` the document tokens that truncation cut off; `cached` pairs did not reach the model this time.
    """

    values: FloatArray
    tokens: IntArray
    dropped: IntArray
    cached: int = 0
    scored: BoolArray | None = None
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """`index` is the document's position in the request, `value` the raw score, `relevance_score` its activation."""

    index: int
    relevance_score: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """`results` are in order of relevance. `tokens` and `dropped_tokens` are sums over all documents."""

    model: str
    results: Sequence[RankedDocument]
    tokens: int
    dropped_tokens: int
    truncated_documents: int
    cached: int
    timings: Timings
