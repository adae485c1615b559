"""Classify: token ids of a pair and where its second segment begins go in, the logits of the model's head come out."""

from dataclasses import dataclass
from typing import ClassVar

from rerankd.tasks.encoding import identities_of, lengths_of


@dataclass(frozen=True, slots=True)
class Classify:
    """Payloads are `Encoding`s, results rows of `outputs` logits."""

    outputs: int

    name: ClassVar[str] = "classify"
    identities = staticmethod(identities_of)
    costs = staticmethod(lengths_of)
