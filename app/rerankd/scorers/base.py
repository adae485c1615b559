"""What a scorer is: it knows what a model's numbers mean.

A scorer of pairs gives each document its own score; a scorer of lists orders the candidates of one window; a scorer of
groups grades them; a scorer of vectors compares those of query and document; a scorer of blocks compares all documents
of a request, a scorer of comparisons two at a time.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rerankd.concurrency.slices import Sliced
from rerankd.domain import BoolArray, FloatArray, GroupPlan, IntArray, Remark, WindowPlan
from rerankd.errors import InvalidRequest
from rerankd.scorers.ranking import Activation
from rerankd.tasks.base import Task

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
Made = TypeVar("Made")
Made_co = TypeVar("Made_co", covariant=True)


@dataclass(frozen=True, slots=True)
class EncodedPairs(Generic[T_co]):
    """One payload of the scorer's task for each document; `dropped` counts the document tokens that did not fit, shape
    [documents]. Only payloads of one `group` share a pass.
    """

    encodings: Sequence[T_co]
    dropped: IntArray
    group: Hashable = None


@dataclass(frozen=True, slots=True)
class Edges:
    """A document's token boundaries, shape [tokens + 1]: token i is characters `characters[i]` to `characters[i + 1]`,
    white space before it included. `words` says before which tokens a word ends.
    """

    characters: IntArray
    words: BoolArray

    @property
    def tokens(self) -> int:
        return len(self.characters) - 1

    def first(self, tokens: int) -> "Edges":
        """Those of the first tokens."""
        return Edges(self.characters[: tokens + 1], self.words[: tokens + 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSpec:
    """What a scorer is loaded from. `max_length` None: as long as the model can read. `source` is the registry's word
    for where the model comes from; prompt templates are looked for in `templates`, the first folder first. Images of
    more than `max_image_pixels` are refused.
    """

    folder: Path
    max_length: int | None = None
    source: str = ""
    templates: Sequence[Path] = ()
    max_image_pixels: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """What scorers of every kind have in common."""

    @property
    def fingerprint(self) -> str:
        """Everything about this scorer that changes a score or an order: lengths, prompt, options. For cache keys."""

    @property
    def pad_id(self) -> int: ...

    @property
    def task(self) -> Task[Any]:
        """What it needs of an engine."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest pair, or prompt of a window, that the model reads."""

    def by_kind(self, kinds: "Kinds[Made]", /) -> Made:
        """Have something made by the method for this scorer's kind."""


class PairReader(Protocol):
    """What a scorer of pairs knows of the tokens of texts."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest pair that the model reads."""

    def room(self, query: str, instruction: str | None = None) -> int:
        """How many tokens of a document fit beside a query and an instruction.

        Raises:
            InvalidRequest: they leave no room for a document, or the model reads no instruction.
        """

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """Where the tokens of documents lie, so that long ones can be read in passages."""

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""


@runtime_checkable
class EncodesQuickly(Protocol):
    """A scorer of pairs that may encode texts in less time than it takes to hand them to another thread."""

    def is_quick(self, query: str, documents: Sequence[str]) -> bool:
        """Whether encoding these takes microseconds a document."""


@runtime_checkable
class StatesScores(Protocol):
    """A scorer whose raw scores may be something else than logits."""

    @property
    def scores(self) -> Literal["logit", "relevance"]: ...


@runtime_checkable
class Prunes(Protocol[T_contra, R_contra]):
    """A scorer of pairs whose model also says which tokens of a document to keep."""

    @property
    def prune_threshold(self) -> float:
        """The probability above which a token is kept, where a request names none."""

    def keep(self, encoding: T_contra, result: R_contra, /) -> FloatArray:
        """The log-odds that each token of a pair's document is kept, shape [document tokens]."""


@runtime_checkable
class Writes(Protocol[R_contra]):
    """A scorer of pairs whose model writes a text about each, which costs as much as reading it."""

    def written(self, result: R_contra, /) -> int:
        """How many tokens the model wrote for a result."""


@runtime_checkable
class Grades(Protocol[R_contra]):
    """A scorer of pairs whose model writes grades. The raw score of a pair without one is NaN."""

    def ungraded(self, result: R_contra, /) -> int:
        """How many of a result's answers have no grade."""


@runtime_checkable
class Remarks(Protocol[R_contra]):
    """A scorer whose model says more of a document than its score."""

    def remark(self, result: R_contra, /) -> Remark:
        """What it says, of bounded size."""


@runtime_checkable
class ReadsImages(Protocol):
    """A scorer of pairs that reads documents and queries with images."""

    def samples(self, text: str) -> Sequence[str]:
        """Documents for trying the model, one of each kind that it reads; the last has an image."""

    def patches(self, image: bytes, digest: bytes, owner: str) -> FloatArray:
        """What its engine reads of an image; see `SeenImage`."""


class PairScorer(Scorer, PairReader, Protocol[T, R_contra]):
    """Scores are absolute: a pair's score does not depend on the request's other documents."""

    @property
    def task(self) -> Task[T]:
        """What it needs of an engine."""

    @property
    def activation(self) -> Activation: ...

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[T]:
        """Tokenize the query once and all documents in one call; cut documents, never the query. What is kept of them
        is the `owner`'s, for whom this is.

        Raises:
            InvalidRequest: the query leaves no room for a document, or the model reads no instruction.
        """

    def interpret(self, results: Iterable[R_contra], /) -> FloatArray:
        """Turn what the engine gave for pairs, at least one, into raw scores of shape [pairs]."""


@dataclass(frozen=True, slots=True)
class EncodedWindow(Generic[T_co]):
    """One payload of the scorer's task with all candidates of a window; `dropped` estimates the tokens cut off each,
    shape [candidates].
    """

    encoding: T_co
    dropped: IntArray


class ListScorer(Scorer, Protocol[T, R_contra]):
    """Scores are comparable inside of one window only."""

    @property
    def task(self) -> Task[T]:
        """What it needs of an engine."""

    @property
    def plan(self) -> WindowPlan:
        """How the operator wants a request's candidates to be put into windows, or compared."""

    @property
    def names_best(self) -> bool:
        """Whether it says which candidate of a window is the best, and nothing about the others."""

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[T]:
        """Write the prompt of one window of at most `plan.window` candidates; too long passages are cut evenly.

        Raises:
            InvalidRequest: even short passages do not fit, or the model reads no instruction.
        """

    def drops(self, text: str) -> bool:
        """As a `PairScorer`'s."""

    def interpret_window(self, result: R_contra, /, *, candidates: int) -> FloatArray:
        """Turn what the engine gave for one window into scores, shape [candidates]: higher is better. All are equal
        where the model said nothing of the candidates; all but one where it `names_best`.
        """


Role = Literal["query", "document"]
# What a scorer of vectors knows of one text; how it lies in memory says the scorer's form.
Vectors = NDArray[Any]


@dataclass(frozen=True, slots=True)
class VectorForm:
    """How a text's vectors lie in memory. In `shape`, -1 stands for what depends on the text."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def bytes_of(self, tokens: int) -> int:
        """Bytes of the vectors of a text with this many tokens, at most."""
        return self.dtype.itemsize * prod(tokens if size < 0 else size for size in self.shape)

    @property
    def texts_at_a_time(self) -> int:
        """As many as are copied in some milliseconds, or sent to a cache and back: a vector for each token of a text
        takes some 100 KB.
        """
        return 16 if len(self.shape) > 1 else 250


@dataclass(frozen=True, slots=True)
class EncodedTexts(Generic[T_co]):
    """One payload of the scorer's task for each text; `dropped` counts the tokens of each that did not fit, shape
    [texts].
    """

    encodings: Sequence[T_co]
    dropped: IntArray


class VectorScorer(Scorer, PairReader, Protocol[T, R_contra]):
    """Queries and documents go through the model apart, and their vectors are compared. So a document's vectors are the
    same for every query.
    """

    @property
    def task(self) -> Task[T]:
        """What it needs of an engine."""

    @property
    def activation(self) -> Activation: ...

    @property
    def form(self) -> VectorForm:
        """How its vectors lie in memory, and in a cache."""

    def query_room(self) -> int:
        """How many tokens of a query the model reads."""

    def encode(
        self, role: Role, texts: Sequence[str], *, max_tokens: int | None, instruction: str | None = None
    ) -> EncodedTexts[T]:
        """Tokenize texts of one role, each cut to `max_tokens` and to what the model reads.

        Raises:
            InvalidRequest: a query is too long, or the model reads no instruction.
        """

    def vectors(self, encoding: T, result: R_contra, /) -> Vectors:
        """What to compare and to keep of what the engine gave for a text, in this scorer's form."""

    def compare(self, query: Vectors, documents: Sequence[Vectors], /) -> FloatArray:
        """Raw scores of shape [documents], at least one."""


@runtime_checkable
class AsksOverDocuments(Protocol):
    """A scorer of vectors that reads a query together with a request's first documents."""

    def query_over(self, query: str, documents: Sequence[str], instruction: str | None) -> str:
        """What is embedded in the role of the query.

        Raises:
            InvalidRequest: it does not fit into what the model reads.
        """


@dataclass(frozen=True, slots=True)
class EncodedBlocks(Generic[T_co]):
    """One payload of the scorer's task for each block of consecutive documents; `sizes` counts the documents of each.
    `dropped` counts the document tokens that did not fit, shape [documents].
    """

    encodings: Sequence[T_co]
    sizes: Sequence[int]
    dropped: IntArray


class BlockScorer(Scorer, Protocol[T, R_contra]):
    """Scores depend on a request's other documents, and are comparable inside of it."""

    @property
    def task(self) -> Task[T]:
        """What it needs of an engine."""

    @property
    def activation(self) -> Activation: ...

    def encode_blocks(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> Sliced[EncodedBlocks[T]]:
        """Write the prompts of a request; cut documents, never the query. A step reads a document or writes a prompt.

        Raises:
            InvalidRequest: the query leaves no room for a document, or the model reads no instruction.
        """

    def drops(self, text: str) -> bool:
        """As a `PairScorer`'s."""

    def interpret_blocks(self, results: Sequence[R_contra], /) -> FloatArray:
        """Turn what the engine gave for all blocks into raw scores of shape [documents]."""


class GroupScorer(Scorer, Protocol[T, R_contra]):
    """Grades the documents of one group beside one another. Grades are absolute as far as the model's scale is."""

    @property
    def task(self) -> Task[T]:
        """What it needs of an engine."""

    @property
    def plan(self) -> GroupPlan:
        """Into which groups a request's documents are put."""

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow[T]:
        """As a `ListScorer`'s, of one group."""

    def drops(self, text: str) -> bool:
        """As a `PairScorer`'s."""

    def written(self, result: R_contra, /) -> int:
        """How many tokens the model wrote for a result."""

    def reason(self, result: R_contra, /) -> str:
        """What the model wrote before its grades, of bounded size."""

    def grades(self, result: R_contra, /, *, candidates: int) -> FloatArray:
        """The grades of a group, in [0, 1], shape [candidates]; NaN for those that got none."""


# The positions of two documents, in the order in which a model reads them.
Comparison = tuple[int, int]


class ComparisonScorer(Scorer, Protocol[T, R_contra]):
    """Says of two documents whether the first is the better one. What it says of the other order is its own."""

    @property
    def task(self) -> Task[T]:
        """What it needs of an engine."""

    @property
    def plan(self) -> WindowPlan:
        """Which candidates are compared: of the first `depth`, two at a time, by its schedule."""

    def encode_comparisons(
        self,
        query: str,
        documents: Sequence[str],
        comparisons: Sequence[Comparison],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
        owner: str = "",
    ) -> EncodedPairs[T]:
        """Write one prompt for each comparison; `dropped` counts the tokens cut off its first document. What is kept of
        documents is the `owner`'s, for whom this is.

        Raises:
            InvalidRequest: the query leaves no room for two documents, or the model reads no instruction.
        """

    def drops(self, text: str) -> bool:
        """As a `PairScorer`'s."""

    def interpret_comparisons(self, results: Iterable[R_contra], /) -> FloatArray:
        """Turn what the engine gave for comparisons, at least one, into the log-odds that the first document is better,
        shape [comparisons].
        """


AnyPairScorer = PairScorer[Any, Any]
AnyListScorer = ListScorer[Any, Any]
AnyVectorScorer = VectorScorer[Any, Any]
AnyBlockScorer = BlockScorer[Any, Any]
AnyGroupScorer = GroupScorer[Any, Any]
AnyComparisonScorer = ComparisonScorer[Any, Any]


class Kinds(Protocol[Made_co]):
    """Makes something of a scorer, each kind in its own way: its stages, say."""

    def pairs(self, scorer: AnyPairScorer, /) -> Made_co: ...

    def lists(self, scorer: AnyListScorer, /) -> Made_co: ...

    def vectors(self, scorer: AnyVectorScorer, /) -> Made_co: ...

    def blocks(self, scorer: AnyBlockScorer, /) -> Made_co: ...

    def groups(self, scorer: AnyGroupScorer, /) -> Made_co: ...

    def comparisons(self, scorer: AnyComparisonScorer, /) -> Made_co: ...


def refuse_instruction(instruction: str | None, *, takes: bool = False) -> None:
    """Refuse an instruction to a model that takes none.

    Raises:
        InvalidRequest: there is an instruction.
    """
    if instruction is not None and not takes:
        raise InvalidRequest("this model does not take an instruction; leave it out")
