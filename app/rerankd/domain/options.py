"""What a caller may ask for beside texts: how long documents are read, how windows move, on which terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rerankd.domain.terms import Terms


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
