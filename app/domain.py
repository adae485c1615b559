"""The nouns of reranking. Frozen, and ignorant of HTTP, threads and storage."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Encoding:
    """The token ids of one sequence, shape [length]. Ids from `boundary` on belong to segment 1; those before it are
    the query's part, which a request's encodings share and an engine may compute once.
    """

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
    instruction: str | None = None
    windows: "WindowWishes | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """How a listwise model works through more candidates than it reads at once: the first `depth` are put into windows
    of at most `window`, by a schedule of `app.pipeline.windows`; those beyond keep their order below.
    """

    window: int = 20
    stride: int = 10
    schedule: str = "sliding"
    depth: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowWishes:
    """What a caller asks of a listwise model, within the operator's plan; None: what the plan says. `initial_order`
    are the indices of all documents, best first; None: the documents come in that order.
    """

    window: int | None = None
    stride: int | None = None
    schedule: str | None = None
    depth: int | None = None
    initial_order: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What a stage must know beside the texts. `urgent` work goes before everything that waits. `top_n` documents are
    all that the caller will see.
    """

    max_tokens_per_doc: int | None = None
    urgent: bool = False
    instruction: str | None = None
    top_n: int | None = None
    windows: WindowWishes | None = None


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
    A listwise stage's values say the order and nothing else. `placed_by` names, for a cascade, the model that gave each
    document its place; None for one that kept the request's.
    """

    values: FloatArray
    tokens: IntArray
    dropped: IntArray
    cached: int = 0
    timings: Timings = field(default_factory=Timings)
    placed_by: Sequence[str | None] | None = None


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """`index` is the document's position in the request, `value` the raw score, `relevance_score` its activation.
    `placed_by` is the model of a cascade that gave the document its place.
    """

    index: int
    relevance_score: float
    value: float
    placed_by: str | None = None


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
