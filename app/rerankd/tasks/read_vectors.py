"""Read vectors: token ids of a prompt go in, with positions in it; the model's vectors at these positions come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rerankd.domain import IntArray


@dataclass(frozen=True, slots=True)
class MarkedPrompt:
    """Token ids of shape [length], and the positions that are read, shape [positions]."""

    ids: IntArray
    positions: IntArray


@dataclass(frozen=True, slots=True)
class ReadVectors:
    """Payloads are `MarkedPrompt`s, results arrays of shape [positions, width]."""

    name: ClassVar[str] = "read_vectors"
    outputs: ClassVar[None] = None

    def identities(self, prompts: Sequence[MarkedPrompt]) -> list[bytes]:
        return [len(prompt.ids).to_bytes(8) + prompt.ids.tobytes() + prompt.positions.tobytes() for prompt in prompts]

    def costs(self, prompts: Sequence[MarkedPrompt]) -> list[int]:
        return [len(prompt.ids) for prompt in prompts]
