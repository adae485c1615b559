"""Makes work items of what a scorer has written, and states what they cost."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar

import numpy as np

from rerankd.batching.admission import Tokenized
from rerankd.batching.ticket import Outcome, Ticket
from rerankd.batching.work import WorkItem, work_of
from rerankd.concurrency.pacing import is_held_back
from rerankd.concurrency.sharing import SharedWorker
from rerankd.domain import BoolArray, IntArray, Terms
from rerankd.pipeline.chunks import chunks
from rerankd.tasks.base import Task
from rerankd.telemetry.spans import traced

T = TypeVar("T")

# A larger request is tokenized in chunks: others get their turn between two of them, and a client that goes away
# stops the rest. With 500, ten documents beside 1,000-document requests waited up to 0.1 s for it.
_TEXTS_PER_CALL: Final = 100
_CHARACTERS_PER_CALL: Final = 100_000
# As many as of a body that is parsed as soon as it is here; about half a millisecond.
_CHARACTERS_AT_ONCE: Final = 1 << 15
_TEXTS_AT_ONCE: Final = 60


@dataclass(frozen=True, slots=True)
class EncodedItems(Generic[T]):
    """A request's items, their lengths in tokens and what was cut off: one a text."""

    items: list[WorkItem[T]]
    tokens: IntArray
    dropped: IntArray


async def encode_items(
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], tuple[EncodedItems[T], Tokenized]],
    ticket: Ticket[T, Any],
    tokenizing: SharedWorker,
    terms: Terms,
    *,
    is_quick: Callable[[], bool] = bool,
) -> EncodedItems[T]:
    """Encode texts in a thread, a chunk in each turn, and tell the ticket what they turned out to be. A few that are
    quick are encoded here: to hand them to a thread would take longer.

    Raises:
        Overloaded, DeadlineExceeded, RateLimited: see `Ticket.correct`.
    """
    encoded: list[EncodedItems[T]] = []
    if (
        len(texts) <= _TEXTS_AT_ONCE
        and sum(map(len, texts)) <= _CHARACTERS_AT_ONCE
        and not is_held_back()
        and is_quick()
    ):
        whole, part = encode(texts)
        ticket.correct(part)
        return whole
    with traced("tokenize", {"rerankd.items": len(texts)}):
        for places, share in chunks(texts, terms, most=_TEXTS_PER_CALL, characters=_CHARACTERS_PER_CALL):
            chunk, part = await tokenizing.run(share, encode, texts[places])
            ticket.correct(part)
            encoded.append(chunk)
    return EncodedItems(
        [item for chunk in encoded for item in chunk.items],
        tokens=np.concatenate([chunk.tokens for chunk in encoded]),
        dropped=np.concatenate([chunk.dropped for chunk in encoded]),
    )


def finished(outcome: Outcome[Any], items: int) -> BoolArray | None:
    """Which items have a result; None: all."""
    if outcome.finished is None:
        return None
    done = np.zeros(items, dtype=np.bool_)
    done[outcome.finished] = True
    return done


def encoded_items(
    task: Task[T], payloads: Sequence[T], dropped: IntArray, *, scope: str, group: Hashable = None
) -> EncodedItems[T]:
    """The items of payloads; see `items_of`."""
    items = items_of(task, payloads, scope=scope, group=group)
    return EncodedItems(items, np.array([item.cost for item in items], dtype=np.int64), dropped)


def items_of(task: Task[T], payloads: Sequence[T], *, scope: str, group: Hashable = None) -> list[WorkItem[T]]:
    """One item each. Those of different scopes are never taken for equal, and only those of one group share a pass."""
    prefix = blake2b(scope.encode(), digest_size=8).digest() if scope else b""
    told_apart = zip(task.identities(payloads), task.costs(payloads), payloads, strict=True)
    return [WorkItem(prefix + identity, cost, group, payload) for identity, cost, payload in told_apart]


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
