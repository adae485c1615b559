"""What a caller may ask for beside texts: how long documents are read, how windows move, on which terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from rerankd.domain.terms import Terms
from rerankd.errors import InvalidRequest


class Truncation(StrEnum):
    """What happens to a document that is longer than the model can read beside the query."""

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


def check_overlap(*, tokens: int | None, overlap: int | None) -> None:
    """Check that each passage begins at least half a passage after the one before.

    Raises:
        ValueError: it does not.
    """
    if tokens is not None and overlap is not None and overlap > tokens // 2:
        raise ValueError(f"overlap must be at most half of tokens, here {tokens // 2}, not {overlap}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassagePlan:
    """How long documents are read in passages. A passage has `tokens`, None: as many as fit beside the query, and
    shares `overlap` of them with the one before, None: a quarter. `max_passages` of a document are read, the rest
    counts as dropped. `top_k` belongs to `top_k_mean`.
    """

    tokens: int | None = None
    overlap: int | None = None
    max_passages: int = 32
    aggregation: Aggregation = Aggregation.MAX
    top_k: int = 3

    def length(self, *, room: int) -> int:
        """Tokens of a passage if `room` of them fit beside the query."""
        return min(self.tokens or room, room)

    def overlap_of(self, length: int) -> int:
        """Tokens that passages of this length share."""
        return length // 4 if self.overlap is None else min(self.overlap, length // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageWishes:
    """A caller's wishes for passages; None: what the operator's plan says."""

    tokens: int | None = None
    overlap: int | None = None
    max_passages: int | None = None
    aggregation: Aggregation | None = None
    top_k: int | None = None

    def within(self, plan: PassagePlan) -> PassagePlan:
        """The plan with these wishes, and never with more passages."""
        return PassagePlan(
            tokens=self.tokens or plan.tokens,
            overlap=plan.overlap if self.overlap is None else self.overlap,
            max_passages=min(self.max_passages or plan.max_passages, plan.max_passages),
            aggregation=self.aggregation or plan.aggregation,
            top_k=self.top_k or plan.top_k,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """How a listwise model ranks more candidates than it reads at once. A schedule of `rerankd.pipeline.windows` puts
    the first `depth` candidates into windows of at most `window`. Later candidates keep their order, below the others.
    """

    window: int = 20
    stride: int = 10
    schedule: str = "sliding"
    depth: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowWishes:
    """A caller's wishes for windows; None: what the operator's plan says. `initial_order` holds the indices of all
    documents, best first; None: the documents come in that order.
    """

    window: int | None = None
    stride: int | None = None
    schedule: str | None = None
    depth: int | None = None
    initial_order: Sequence[int] | None = None

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
        return WindowPlan(window=window, stride=stride, schedule=self.schedule or plan.schedule, depth=depth)

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
class ScoreOptions:
    """What a stage must know beside the texts.

    `truncation` None is the model's own policy. `instruction` tells an instruction-following model what "relevant"
    means. The caller sees only the best `top_n` documents. Requests of one `scope` do not find what others cached.
    """

    max_tokens_per_doc: int | None = None
    truncation: Truncation | None = None
    truncation_side: Side = Side.RIGHT
    passages: PassageWishes = PassageWishes()
    instruction: str | None = None
    top_n: int | None = None
    windows: WindowWishes | None = None
    scope: str = ""
    terms: Terms = Terms()
