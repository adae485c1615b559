"""Weigh words: token ids of a text go in, weights of the vocabulary's words come out, most of which are 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from rerankd.tasks.encoding import Encoding, identities_of, lengths_of

# One word of a text, by its token id. Words without weight are left out, the others are in the order of their ids.
WORD_WEIGHT: Final = np.dtype([("token", "<u4"), ("weight", "<f4")])


@dataclass(frozen=True, slots=True)
class WeighWords:
    """Payloads are `Encoding`s, results arrays of `WORD_WEIGHT`s, shape [words]."""

    name: ClassVar[str] = "weigh_words"
    outputs: ClassVar[None] = None
    costs = staticmethod(lengths_of)

    @staticmethod
    def identities(texts: Sequence[Encoding]) -> list[bytes]:
        return identities_of(texts)
