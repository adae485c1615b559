"""What a task is: a contract between a scorer, which writes payloads, and an engine, which computes their results."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)


class Task(Protocol[T_contra]):
    """What a scorer needs of an engine, and how its payloads are told apart and counted."""

    @property
    def name(self) -> str:
        """By which engines are chosen."""

    @property
    def outputs(self) -> int | None:
        """How many logits come out for each payload; None: something else comes out."""

    def identities(self, payloads: Sequence[T_contra], /) -> list[bytes]:
        """What tells each payload from every other of the same model."""

    def costs(self, payloads: Sequence[T_contra], /) -> list[int]:
        """How many tokens the model reads of each payload: an estimate where only the engine knows."""
