"""Embed tokens: token ids of a text go in, a vector for each of its tokens comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerankd.domain import BoolArray
from rerankd.tasks.encoding import Encoding, lengths_of


@dataclass(frozen=True, slots=True)
class ExpandedText(Encoding):
    """The token ids of one text, all of segment 0. Its last `unattended` tokens read the others, and no token reads
    them. `compared`, shape [tokens], is for the scorer: which of the vectors it wants.
    """

    unattended: int = 0
    compared: BoolArray | None = None


@dataclass(frozen=True, slots=True)
class EmbedTokens:
    """Payloads are `ExpandedText`s, results arrays of shape [tokens, width]."""

    name: ClassVar[str] = "embed_tokens"
    outputs: ClassVar[None] = None
    costs = staticmethod(lengths_of)

    @staticmethod
    def identities(texts: Sequence[ExpandedText]) -> list[bytes]:
        return [text.unattended.to_bytes(8) + text.ids.tobytes() for text in texts]
