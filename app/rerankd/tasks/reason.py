"""Reason: a prompt goes in, the model writes a thought, and the logits of a few tokens behind it come out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rerankd.domain import FloatArray, IntArray
from rerankd.tasks.generate import Decode, identities_of, lengths_of

Close = Callable[[IntArray, str], IntArray]


@dataclass(frozen=True, slots=True)
class Judged:
    """The logits behind a thought, shape [tokens], how many tokens the model wrote before, and what it wrote."""

    logits: FloatArray
    written: int
    thought: str


@dataclass(frozen=True, slots=True)
class Reason:
    """Payloads are `Prompt`s, results `Judged` with the logit of each of `tokens`, in that order. Writing stops where
    the text ends with one of `endings`, and the logits are those that its last token, one of `tokens`, was chosen by.
    Of a text that ends otherwise, be it that the model stopped or wrote too long, `close` makes what the logits are
    read behind: of the prompt's ids, and what was written.
    """

    tokens: tuple[int, ...]
    endings: tuple[str, ...]
    decode: Decode
    close: Close

    name: ClassVar[str] = "reason"
    # As many logits as tokens, but the engine is not tried and asked at load: each pass writes a long text.
    outputs: ClassVar[None] = None

    identities = staticmethod(identities_of)
    costs = staticmethod(lengths_of)
