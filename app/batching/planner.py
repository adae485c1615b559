"""Decides which encodings share a forward pass. Every batching decision is made here; pure, no clock, thread or I/O.

1. A request is admitted whole or refused whole, by its tokens.
2. Requests are served in order of arrival, urgent ones first.
3. A batch begins with the longest waiting encoding of the first request and is filled with the longest that remain,
   of that request and then of the others, so that lengths within a batch are close. `padded` area, batch size times
   longest length, stays within the token budget, and padding within `max_padding` of that area.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.errors import Overloaded


class Entry(NamedTuple):
    """One encoding that waits: the request (`job`) it belongs to, its position there and its length in tokens."""

    job: int
    position: int
    length: int


@dataclass(slots=True)
class _Job:
    """Encodings that wait, as (length, index), shortest first: the longest is taken off the end."""

    waiting: list[tuple[int, int]]
    tokens: int


class BatchPlanner:
    """Holds what waits for one model."""

    def __init__(
        self, *, max_batch_tokens: int, max_batch_pairs: int, max_waiting_tokens: int, max_padding: float = 0.25
    ) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_pairs = max_batch_pairs
        self._max_waiting_tokens = max_waiting_tokens
        self._max_padding = max_padding
        self._urgent: dict[int, _Job] = {}
        self._ordinary: dict[int, _Job] = {}
        self.waiting_tokens = 0

    def __bool__(self) -> bool:
        return bool(self._urgent or self._ordinary)

    def admit(self, job: int, lengths: Sequence[int], *, urgent: bool = False) -> None:
        """Queue all of a request's encodings, or none of them.

        Raises:
            Overloaded: other work waits and the request would exceed the limit. A request that finds nothing
                waiting is always taken, however large.
        """
        tokens = sum(lengths)
        if self and not urgent and self.waiting_tokens + tokens > self._max_waiting_tokens:
            raise Overloaded(
                f"{self.waiting_tokens} tokens wait already; this request has {tokens} and the limit is "
                f"{self._max_waiting_tokens}: try again later, or send fewer documents"
            )
        waiting = sorted((length, index) for index, length in enumerate(lengths))
        (self._urgent if urgent else self._ordinary)[job] = _Job(waiting, tokens)
        self.waiting_tokens += tokens

    def withdraw(self, job: int) -> int:
        """Forget a request's waiting encodings and return how many tokens that saved."""
        queue = self._urgent if job in self._urgent else self._ordinary
        if job not in queue:
            return 0
        tokens = queue.pop(job).tokens
        self.waiting_tokens -= tokens
        return tokens

    def next_batch(self) -> list[Entry]:
        """Take the encodings of the next forward pass off the queue; empty when nothing waits."""
        batch = _Batch(
            max_tokens=self._max_batch_tokens, max_pairs=self._max_batch_pairs, max_padding=self._max_padding
        )
        for number, job in list(self._in_order()):
            self._take(batch, number, job)
            if batch.full:
                break
        return batch.entries

    def _in_order(self) -> Iterator[tuple[int, _Job]]:
        """The policy: which request is served first."""
        yield from self._urgent.items()
        yield from self._ordinary.items()

    def _take(self, batch: "_Batch", number: int, job: _Job) -> None:
        """Move a request's longest encodings that are not longer than the batch's first one."""
        end = bisect_right(job.waiting, batch.longest, key=_length) if batch.entries else len(job.waiting)
        start = end
        while start > 0 and batch.takes(job.waiting[start - 1][0]):
            start -= 1
            length, index = job.waiting[start]
            batch.add(Entry(number, index, length))
            job.tokens -= length
            self.waiting_tokens -= length
        del job.waiting[start:end]
        if not job.waiting:
            (self._urgent if number in self._urgent else self._ordinary).pop(number)


def _length(waiting: tuple[int, int]) -> int:
    return waiting[0]


class _Batch:
    """A batch that is being filled, its longest encoding first."""

    def __init__(self, *, max_tokens: int, max_pairs: int, max_padding: float) -> None:
        self._max_tokens = max_tokens
        self._max_pairs = max_pairs
        self._max_padding = max_padding
        self._tokens = 0
        self.entries: list[Entry] = []
        self.longest = 0

    @property
    def full(self) -> bool:
        """Whether not even one more encoding of the same length would fit."""
        return bool(self.entries) and not self._fits()

    def takes(self, length: int) -> bool:
        """Whether an encoding fits. The first always does, so that an oversize one is not stuck for ever."""
        if not self.entries:
            return True
        area = (len(self.entries) + 1) * self.longest
        return self._fits() and area - self._tokens - length <= self._max_padding * area

    def add(self, entry: Entry) -> None:
        self.longest = self.longest or entry.length
        self._tokens += entry.length
        self.entries.append(entry)

    def _fits(self) -> bool:
        size = len(self.entries) + 1
        return size <= self._max_pairs and size * self.longest <= self._max_tokens
