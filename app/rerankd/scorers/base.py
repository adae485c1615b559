"""What a scorer is: it knows what a model's numbers mean.

A scorer of pairs gives each document its own score; a scorer of lists orders the candidates of one window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rerankd.domain import BoolArray, FloatArray, IntArray, WindowPlan
from rerankd.scorers.ranking import Activation
from rerankd.tasks.encoding import Encoding


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """One encoding per document; `dropped` counts the document tokens that did not fit, shape [documents]."""

    encodings: Sequence[Encoding]
    dropped: IntArray


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSpec:
    """What a scorer is loaded from. `max_length` None: as long as the model can read. `source` is the registry's word
    for where the model comes from; prompt templates are looked for in `templates`, the first folder first.
    """

    folder: Path
    max_length: int | None = None
    source: str = ""
    templates: Sequence[Path] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


class PairScorer(Protocol):
    """Scores are absolute: a pair's score does not depend on the request's other documents."""

    @property
    def fingerprint(self) -> str:
        """Everything about this scorer that changes a score: length, template, options. Part of cache keys."""

    @property
    def pad_id(self) -> int: ...

    @property
    def output_tokens(self) -> Sequence[int]:
        """The tokens whose logits the engine is to give; empty: the model has a head of its own."""

    @property
    def outputs(self) -> int:
        """How many outputs an engine must give for a pair."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest pair that the model reads."""

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
    ) -> EncodedPairs:
        """Tokenize the query once and all documents in one call; cut documents, never the query. What is kept of them
        is the `owner`'s, for whom this is.

        Raises:
            InvalidRequest: the query leaves no room for a document, or the model reads no instruction.
        """

    def room(self, query: str, instruction: str | None = None) -> int:
        """How many tokens of a document fit beside a query and an instruction.

        Raises:
            InvalidRequest: they leave no room for a document, or the model reads no instruction.
        """

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        """Where the tokens of documents lie, so that long ones can be read in passages."""

    def drops(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a short text."""

    def interpret(self, logits: FloatArray) -> FloatArray:
        """Turn the head's outputs, shape [pairs, outputs], into raw scores, shape [pairs]."""


@dataclass(frozen=True, slots=True)
class EncodedWindow:
    """One prompt with all candidates of a window; `dropped` estimates the tokens cut off each, shape [candidates]."""

    encoding: Encoding
    dropped: IntArray


@runtime_checkable
class ListScorer(Protocol):
    """Scores are comparable inside of one window only."""

    @property
    def fingerprint(self) -> str:
        """Everything about this scorer that changes an order: prompt, identifiers, lengths. Part of cache keys."""

    @property
    def pad_id(self) -> int: ...

    @property
    def output_tokens(self) -> Sequence[int]:
        """As a `PairScorer`'s; for a model that generates, empty."""

    @property
    def outputs(self) -> int | None:
        """How many outputs an engine must give for a prompt; None for a model that generates: as many as it writes."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt that the model reads."""

    @property
    def plan(self) -> WindowPlan:
        """How the operator wants a request's candidates to be put into windows."""

    def encode_window(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_document_tokens: int | None,
        instruction: str | None = None,
    ) -> EncodedWindow:
        """Write the prompt of one window of at most `plan.window` candidates; too long passages are cut evenly.

        Raises:
            InvalidRequest: even short passages do not fit, or the model reads no instruction.
        """

    def drops(self, text: str) -> bool:
        """As a `PairScorer`'s."""

    def interpret_window(self, outputs: FloatArray, *, candidates: int) -> FloatArray:
        """Turn one prompt's outputs, shape [outputs], into scores, shape [candidates]: higher is better. All are equal
        where the model said nothing of the candidates.
        """
