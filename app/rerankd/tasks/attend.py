"""Attend: a prompt with documents and two ends of it go in; the attention of each end to the documents comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerankd.domain import IntArray


@dataclass(frozen=True, slots=True)
class AttendedPrompt:
    """Token ids that both prompts begin with, and what follows them in each: `question` and `calibration`. `spans`,
    shape [documents, 2], says which tokens of the beginning are a document's.
    """

    ids: IntArray
    question: IntArray
    calibration: IntArray
    spans: IntArray


@dataclass(frozen=True, slots=True)
class Attend:
    """Payloads are `AttendedPrompt`s, results lists of an array of shape [2, tokens] for each document: the attention
    to each of its tokens from `question` and from `calibration`, mean over their tokens, sum over heads and layers.
    """

    name: ClassVar[str] = "attend"
    outputs: ClassVar[None] = None

    def identities(self, prompts: Sequence[AttendedPrompt]) -> list[bytes]:
        return [b"".join(map(_told_apart, (one.ids, one.question, one.calibration, one.spans))) for one in prompts]

    def costs(self, prompts: Sequence[AttendedPrompt]) -> list[int]:
        return [len(one.ids) + len(one.question) + len(one.calibration) for one in prompts]


def _told_apart(array: IntArray) -> bytes:
    return array.size.to_bytes(8) + array.tobytes()
