"""Prune: token ids of a pair go in; the logit of the pair and how much each token should be kept come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerankd.tasks.encoding import Encoding, identities_of, lengths_of


@dataclass(frozen=True, slots=True)
class PrunablePair(Encoding):
    """The token ids of a pair; those from `document_from` to `document_to` are the document's."""

    document_from: int = 0
    document_to: int = 0


@dataclass(frozen=True, slots=True)
class Prune:
    """Payloads are `PrunablePair`s, results arrays of shape [1 + tokens] or longer: the pair's logit, and for each
    token the log-odds that it is kept.
    """

    name: ClassVar[str] = "prune"
    outputs: ClassVar[None] = None
    costs = staticmethod(lengths_of)

    @staticmethod
    def identities(pairs: Sequence[PrunablePair]) -> list[bytes]:
        return identities_of(pairs)
