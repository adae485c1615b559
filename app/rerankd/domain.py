"""The nouns of reranking. Frozen, and ignorant of HTTP, threads and storage."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


# Priorities are Cohere's: 0 is served first, 999 last.
LAST_PRIORITY: Final = 999


class Truncation(StrEnum):
    """What becomes of a document that is longer than the model reads beside the query."""

    TRUNCATE = "truncate"
    ERROR = "error"
    CHUNK = "chunk"


class Side(StrEnum):
    """Which end of a document is cut off."""

    LEFT = "left"
    RIGHT = "right"


class Aggregation(StrEnum):
    """How the scores of a document's passages become the document's: `max` and `first` are MaxP and FirstP of Dai and
    Callan, "Deeper Text Understanding for IR with Contextual Neural Language Modeling", SIGIR 2019; `mean` averages
    all raw scores (MeanP) and `top_k_mean` the best few, a middle between max and mean.
    """

    MAX = "max"
    FIRST = "first"
    MEAN = "mean"
    TOP_K_MEAN = "top_k_mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageOptions:
    """How long documents are read in passages; None is the model's own default.

    `tokens` is a passage's length and `overlap` how many of them it shares with the one before; `max_passages` of a
    document are read, the rest counts as dropped. `top_k` belongs to `top_k_mean`.
    """

    tokens: int | None = None
    overlap: int | None = None
    max_passages: int | None = None
    aggregation: Aggregation | None = None
    top_k: int | None = None


def check_overlap(*, tokens: int | None, overlap: int | None) -> None:
    """Check that passages of these lengths go on through a document by at least half of one each.

    Raises:
        ValueError: they do not.
    """
    if tokens is not None and overlap is not None and overlap > tokens // 2:
        raise ValueError(f"overlap must be at most half of tokens, here {tokens // 2}, not {overlap}")


class Meter(Protocol):
    """Counts what one request costs its caller, and says when the caller may not have so much."""

    @property
    def limited(self) -> bool:
        """Whether the caller has a quota: else nothing need be known before the work."""

    def reserve(self, tokens: int) -> None:
        """Set about so many tokens aside before any work is done.

        Raises:
            RateLimited: the caller's quota is used up.
        """

    def read(self, tokens: int) -> None:
        """So many tokens are known to be read, by the model or out of the cache; called before the model reads them.

        Raises:
            RateLimited: that is more than was set aside, and the caller's quota is used up.
        """

    def compute(self, tokens: int) -> None:
        """So many tokens went to the engine."""


class Unmetered:
    """Counts nothing: work of nobody's, or of a caller without a quota."""

    limited = False

    def reserve(self, tokens: int) -> None:
        pass

    def read(self, tokens: int) -> None:
        pass

    def compute(self, tokens: int) -> None:
        pass


UNMETERED: Final = Unmetered()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a request's work stands among that of others.

    `caller` names whose work it is (an API key's name). Of one caller's requests those with the lower `priority` go
    first, 0 to 999; `urgent` work goes before everything that waits and is never refused. `deadline` is a moment on the
    clock of `time.perf_counter`; when it comes, a `partial` answer holds what is scored by then. Where the work is not
    `divisible` nobody can ask for one: half of it says nothing. `meter` counts what the work costs.
    """

    caller: str = ""
    priority: int = 0
    urgent: bool = False
    deadline: float = inf
    partial: bool = False
    divisible: bool = True
    meter: Meter = UNMETERED

    def undivided(self) -> "Terms":
        """The same for work that is only of use as a whole, such as an order."""
        return replace(self, partial=False, divisible=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """How a listwise model works through more candidates than it reads at once: the first `depth` are put into windows
    of at most `window`, by a schedule of `rerankd.pipeline.windows`; those beyond keep their order below.
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
    """What a stage must know beside the texts.

    `truncation` None is the model's own policy. `instruction` tells an instruction-following model what "relevant"
    means. `top_n` documents are all that the caller will see. What is remembered for requests of one `scope` is not
    found by others.
    """

    max_tokens_per_doc: int | None = None
    truncation: Truncation | None = None
    truncation_side: Side = Side.RIGHT
    passages: PassageOptions = PassageOptions()
    instruction: str | None = None
    top_n: int | None = None
    windows: WindowWishes | None = None
    scope: str = ""
    terms: Terms = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """What a caller asks for, whatever the dialect: `documents` are the texts that the model reads. Results with a
    relevance score below `min_score` are left out.
    """

    query: str
    documents: Sequence[str]
    model: str | None = None
    top_n: int | None = None
    min_score: float | None = None
    options: ScoreOptions = ScoreOptions()


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


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """`index` is the document's position in the request, `value` the raw score, `relevance_score` its activation.
    One that is not `scored` had none when the deadline came.
    `placed_by` is the model of a cascade that gave the document its place.
    """

    index: int
    relevance_score: float
    value: float
    scored: bool = True
    placed_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """`results` are in order of relevance; `scores` are those of all documents, in the order of the request, with
    zeros for blank ones. `scorer` names the method.
    """

    model: str
    scorer: str
    results: Sequence[RankedDocument]
    scores: Scores
    ignored: Sequence[str] = ()

    @property
    def tokens(self) -> int:
        """How many tokens the model read, now or when it filled the cache."""
        return int(self.scores.tokens.sum())

    @property
    def dropped_tokens(self) -> int:
        return int(self.scores.dropped.sum())

    @property
    def truncated_documents(self) -> int:
        return int(np.count_nonzero(self.scores.dropped))

    @property
    def unscored_documents(self) -> int:
        """How many had no score when the deadline came."""
        return 0 if self.scores.scored is None else int(np.count_nonzero(~self.scores.scored))

    @property
    def cached(self) -> int:
        return 0 if self.scores.cached is None else int(np.count_nonzero(self.scores.cached))

    @property
    def pairs(self) -> int:
        """How many texts were compared with the query: documents, or their passages."""
        passages = self.scores.passages
        return len(self.scores.values) if passages is None else int(np.maximum(passages.counts, 1).sum())

    @property
    def timings(self) -> Timings:
        return self.scores.timings
