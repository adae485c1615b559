"""Embed: token ids of a text go in, its vectors come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerankd.recognition.modules import Pooling
from rerankd.tasks.encoding import Encoding, lengths_of


@dataclass(frozen=True, slots=True)
class EncodedText(Encoding):
    """The token ids of one text, all of segment 0. Those before `pooled_from` are read, and are no part of its vector:
    the prompt of models that leave it out.
    """

    pooled_from: int = 0


@dataclass(frozen=True, slots=True)
class Embed:
    """Payloads are `EncodedText`s, results vectors of `outputs` numbers. `pooling` says how tokens' vectors become one
    of unit length; None: the folder's modules do.
    """

    outputs: int
    pooling: Pooling | None = None

    name: ClassVar[str] = "embed"
    costs = staticmethod(lengths_of)

    @staticmethod
    def identities(texts: Sequence[EncodedText]) -> list[bytes]:
        return [text.pooled_from.to_bytes(8) + text.ids.tobytes() for text in texts]
