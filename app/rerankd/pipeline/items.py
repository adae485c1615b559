"""Makes work items of what a scorer has written, and states what they cost."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

from rerankd.batching.admission import Tokenized
from rerankd.batching.work import WorkItem, work_of
from rerankd.tasks.base import Task

T = TypeVar("T")


def items_of(task: Task[T], payloads: Sequence[T], *, scope: str) -> list[WorkItem[T]]:
    """One item each. Those of different scopes are never taken for equal."""
    prefix = blake2b(scope.encode(), digest_size=8).digest() if scope else b""
    told_apart = zip(task.identities(payloads), task.costs(payloads), payloads, strict=True)
    return [WorkItem(prefix + identity, cost, None, payload) for identity, cost, payload in told_apart]


def tokenized(
    items: Sequence[WorkItem[T]], lengths: Sequence[int], characters: Sequence[int], *, whole: Sequence[int]
) -> Tokenized:
    """What texts with these numbers of characters turned out to be: items, of these lengths for the engine. Those at
    the positions `whole` were not cut.
    """
    return Tokenized(
        characters=sum(characters),
        items=len(items),
        tokens=sum(item.cost for item in items),
        work=work_of(lengths),
        whole_characters=sum(characters[index] for index in whole),
        whole_tokens=sum(lengths[index] for index in whole),
    )
