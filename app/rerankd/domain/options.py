"""What a caller may ask for beside texts: how long documents are read, how windows move, on which terms.

A plan is the operator's and complete; wishes are a caller's, and `within` a plan they give another plan. Pydantic reads
plans from the registry and wishes from requests: the `metadata` of their fields says what it checks and describes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil
from typing import Protocol

from rerankd.domain.arrays import FloatArray
from rerankd.domain.confidence import ConfidencePlan
from rerankd.domain.diversity import DiversityWishes, Embedder
from rerankd.domain.fusion import FusionWishes
from rerankd.domain.queries import QueryWishes
from rerankd.domain.settled import Settled
from rerankd.domain.terms import Terms
from rerankd.errors import InvalidRequest


class Truncation(StrEnum):
    """What happens to a document that is longer than the model can read beside the query."""

    TRUNCATE = "truncate"
    ERROR = "error"
    CHUNK = "chunk"
    EXTRACT = "extract"


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


def _check_overlap(*, tokens: int | None, overlap: int | None) -> None:
    """Each passage must begin at least half a passage after the one before."""
    if tokens is not None and overlap is not None and overlap > tokens // 2:
        raise ValueError(f"overlap must be at most half of tokens, here {tokens // 2}, not {overlap}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassagePlan:
    """How long documents are read in passages; a table of the registry. What is not read counts as dropped."""

    tokens: int | None = field(
        default=None,
        metadata={"ge": 16, "description": "Tokens per passage; by default as many as fit beside the query."},
    )
    overlap: int | None = field(
        default=None,
        metadata={
            "ge": 0,
            "description": "Tokens shared with the passage before, at most half of `tokens`; by default a quarter.",
        },
    )
    max_passages: int = field(
        default=32, metadata={"ge": 1, "description": "Read at most this many passages of a document."}
    )
    aggregation: Aggregation = field(
        default=Aggregation.MAX,
        metadata={"description": "A document's score: `max`, `first`, `mean` or `top_k_mean` of passages."},
    )
    top_k: int = field(default=3, metadata={"ge": 1, "description": "How many passages `top_k_mean` averages."})
    select: int | None = field(
        default=None,
        metadata={
            "ge": 1,
            "description": "The model reads only this many passages of a document, those with the most query words.",
        },
    )

    def __post_init__(self) -> None:
        _check_overlap(tokens=self.tokens, overlap=self.overlap)

    def length(self, *, room: int) -> int:
        """Tokens of a passage if `room` of them fit beside the query."""
        return min(self.tokens or room, room)

    def overlap_of(self, length: int) -> int:
        """Tokens that passages of this length share."""
        return length // 4 if self.overlap is None else min(self.overlap, length // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageWishes:
    """How a request wants long documents to be read in passages; None: as the operator's plan says."""

    tokens: int | None = field(
        default=None, metadata={"ge": 16, "description": "Tokens per passage, at most the model's length."}
    )
    overlap: int | None = field(
        default=None,
        metadata={
            "ge": 0,
            "description": "Tokens that a passage shares with the previous one, at most half of `tokens`.",
        },
    )
    max_passages: int | None = field(
        default=None,
        metadata={
            "ge": 1,
            "validation_alias": "max_per_doc",
            "description": "Read at most this many passages of a document.",
        },
    )
    aggregation: Aggregation | None = field(
        default=None,
        metadata={
            "description": "The document's score: the best passage's, the first's, or a mean of all or of top_k."
        },
    )
    top_k: int | None = field(
        default=None, metadata={"ge": 1, "description": "How many passages `top_k_mean` averages."}
    )
    select: int | None = field(
        default=None,
        metadata={
            "ge": 1,
            "description": "The model reads only this many passages of a document, those with the most query words.",
        },
    )

    def __post_init__(self) -> None:
        _check_overlap(tokens=self.tokens, overlap=self.overlap)

    def within(self, plan: PassagePlan) -> PassagePlan:
        """The plan with these wishes, and never with more passages."""
        tokens = self.tokens or plan.tokens
        overlap = plan.overlap if self.overlap is None else self.overlap
        return PassagePlan(
            tokens=tokens,
            overlap=overlap if overlap is None or tokens is None else min(overlap, tokens // 2),
            max_passages=min(self.max_passages or plan.max_passages, plan.max_passages),
            aggregation=self.aggregation or plan.aggregation,
            top_k=self.top_k or plan.top_k,
            select=min(self.select or plan.select, plan.select) if plan.select else self.select,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanWishes:
    """A caller's wish to see which parts of the best documents are relevant: at most `most` of each document, all of a
    higher relevance than `threshold`.
    """

    threshold: float = 0.1
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneWishes:
    """A caller's wish to see documents without the sentences that do not help with the query."""

    threshold: float | None = field(
        default=None,
        metadata={
            "ge": 0,
            "le": 1,
            "description": "A sentence is kept if more than this share of its tokens is, each with a higher "
            "probability than this; 0 keeps all; default: the model's.",
        },
    )
    always_select_title: bool = field(
        default=True,
        metadata={"description": "Keep a document's first sentence if another one near it is kept."},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """How a listwise model ranks more candidates than it reads at once. A schedule of `rerankd.pipeline.windows` puts
    the first `depth` candidates into windows of at most `window`. Later candidates keep their order, below the others.
    A schedule of `rerankd.pipeline.choices` compares them, and settles the first `settle`. Two are compared in
    `both_orders`. `rounds` 0: as many as the schedule needs.
    """

    window: int = 20
    stride: int = 10
    schedule: str = "sliding"
    depth: int = 100
    settle: int = 10
    rounds: int = 0
    both_orders: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowWishes:
    """A caller's wishes for windows; None: what the operator's plan says. `initial_order` holds the indices of all
    documents, best first; None: the documents come in that order.
    """

    window: int | None = field(default=None, metadata={"description": "Documents in one prompt."})
    stride: int | None = field(
        default=None, metadata={"description": "By how many documents the sliding window moves."}
    )
    schedule: str | None = field(
        default=None, metadata={"description": "`sliding`, `full`, `top-down` or `tournament`."}
    )
    depth: int | None = field(
        default=None, metadata={"description": "Reorder only this many documents, from the first."}
    )
    initial_order: list[int] | None = field(
        default=None,
        metadata={
            "fail_fast": True,
            "description": "The indices of all documents, best first, as your retriever ranked them.",
        },
    )

    def within(self, plan: WindowPlan) -> WindowPlan:
        """The plan with these wishes.

        Raises:
            InvalidRequest: a number is out of the plan's bounds; the message says them.
        """
        window = _bounded("window", self.window, 2, plan.window)
        depth = _bounded("depth", self.depth, 1, plan.depth)
        stride = min(plan.stride, window - 1)
        if self.stride is not None:
            # A shorter one would read every candidate more often than the operator allows.
            least = min(ceil(window * plan.stride / plan.window), window - 1)
            stride = _bounded("stride", self.stride, least, window - 1)
        return replace(plan, window=window, stride=stride, schedule=self.schedule or plan.schedule, depth=depth)

    def order_of(self, documents: int) -> Sequence[int]:
        """The indices of all documents, best first.

        Raises:
            InvalidRequest: `initial_order` does not hold each of them once.
        """
        if self.initial_order is None:
            return range(documents)
        if sorted(self.initial_order) != list(range(documents)):
            raise InvalidRequest(f"initial_order must hold each of the document indices 0 to {documents - 1} once")
        return self.initial_order


def _bounded(name: str, wish: int | None, least: int, most: int) -> int:
    if wish is None:
        return most
    if not least <= wish <= most:
        raise InvalidRequest(f"{name} must be from {least} to {most} for this model; got {wish}")
    return wish


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """How a groupwise model grades a request's documents: `passes` times, each time in groups of at most `size`, which
    are drawn again.
    """

    size: int = 10
    passes: int = 2


class Selector(Protocol):
    """A cheap ranker of passages (Hofstätter et al., "Intra-Document Cascading for Efficient Passage and Document
    Ranking", SIGIR 2021).
    """

    async def values(
        self, query: str, passages: Sequence[str], counts: Sequence[int], options: "ScoreOptions", /
    ) -> FloatArray:
        """How much each passage is worth reading, shape [passages]; `counts` of them belong to each document.

        Raises:
            RerankError: see `rerankd.errors`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What a stage must know beside the texts.

    `truncation` None is the model's own policy. `max_tokens_per_pair` counts the query, the document and all that the
    model reads around them; it is for `truncation: truncate`. `instruction` tells an instruction-following model what
    "relevant" means. The caller sees only the best `top_n` documents. Requests of one `scope` do not find what others
    cached. `selector` chooses the passages of `passages.select`, None: by words. `embedder` gives documents the vectors
    of `diversity`, None: the model itself. `budgeted`: read only as many documents as fit before the deadline.
    `settled` is told final places while the work goes on; None: nobody asks, or the order is changed afterwards.
    """

    max_tokens_per_doc: int | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_pair: int | None = None
    truncation: Truncation | None = None
    truncation_side: Side = Side.RIGHT
    passages: PassageWishes = PassageWishes()
    instruction: str | None = None
    top_n: int | None = None
    windows: WindowWishes | None = None
    spans: SpanWishes | None = None
    prune: PruneWishes | None = None
    fusion: FusionWishes | None = None
    diversity: DiversityWishes | None = None
    embedder: Embedder | None = None
    queries: QueryWishes | None = None
    budgeted: bool = False
    confidence: ConfidencePlan | None = None
    selector: Selector | None = None
    scope: str = ""
    settled: Settled | None = None
    terms: Terms = Terms()

    @property
    def wishes(self) -> Sequence[str]:
        """The wishes among these that mean nothing to some kinds of models, by their names in requests."""
        wishes = {
            "windows": self.windows,
            "truncation": self.truncation if self.truncation in (Truncation.CHUNK, Truncation.EXTRACT) else None,
            "passages": None if self.passages == PassageWishes() else self.passages,
            "relevant_spans": self.spans,
            "confidence": self.confidence,
            "max_tokens_per_query": self.max_tokens_per_query,
            "truncate_prompt_tokens": self.max_tokens_per_pair,
            "on_deadline": self.terms.partial or None,
        }
        return [name for name, wish in wishes.items() if wish is not None]

    @property
    def idle_wishes(self) -> Sequence[str]:
        """The wishes among these that mean nothing beside the others, whatever the model."""
        in_passages = self.truncation in (None, Truncation.CHUNK) or self.prune is not None
        return [] if in_passages or self.passages == PassageWishes() else ["passages"]
