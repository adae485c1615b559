"""Decides which items share a pass. Every batching decision is made here; pure, no clock, thread or I/O.

1. Urgent requests go first.
2. Callers share the engine: next is the one that had least of it (start-time fair queueing, Goyal et al. 1996). A
   token counts the more, the more its caller has waiting, by the square root: a caller that asks for little at a time
   hardly notices one that floods the queue, equal callers have equal shares, and none starves. A caller that was away
   may catch up by `_CREDIT_TOKENS`.
3. Of a caller's requests, those with less work left go first, within their priority: a factor of four apart, so that
   requests of about one size are served in order of arrival and their latencies do not spread. One batch in `_TURNS`
   belongs to the oldest request, so that nothing starves and nothing large holds up small ones.
4. When deadlines would be missed that way, the earliest deadline of all callers goes first until they are safe again;
   what cannot be done in time any more goes last, for else, once one request is late, all behind it would be (Moore
   1968). Admitted requests keep their deadlines, so admission divides the engine among callers then. Light callers,
   which have much less than their share of the queue, keep their turns even then: what they take is little, and they
   must not pay for what others were promised.
5. A batch begins with the longest waiting item of the first request and is filled with the longest that remain, of that
   request and then of the others, so that lengths within a batch are close. `padded` area, batch size times longest
   length, stays within the token budget, and padding within `max_padding` of that area. Requests of about the first
   one's size are asked for what pads hardly at all first: padding costs the time of as much text. For an engine that
   computes no padding, lengths may differ at will, and their sum stays within the budget. All items of a batch are of
   its first one's group.
6. A request that a few passes finish may have larger ones, by `stretch`, as long as they are its own: what comes
   meanwhile would hardly go before it. One that takes long is interrupted more often.
7. When little waits, several workers share it: a batch takes no more than one worker's part of it (guided
   self-scheduling, Polychronopoulos and Kuck 1987).
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, takewhile
from math import inf, sqrt
from typing import NamedTuple

from rerankd.domain import Terms

_TURNS = 4
# A light caller has at most this fraction (1/8) of the tokens that would be its equal share of the queue.
_LIGHT = 8
_CREDIT_TOKENS = 50_000.0
# A caller with this many tokens waiting is charged one for each.
_USUAL_TOKENS = 4_000
# Work is predicted a little too small now and then, and passes that run are not interrupted.
_DEADLINE_MARGIN = 1.1
_PASSES_TO_SPARE = 2
# How many requests are asked for items of the right length before a batch goes off as it is.
_MOST_ASKED = 64
# Padding that a batch may have, as a share of its area, as long as requests of up to `_ALIKE` times the first one's
# size have something of a better length.
_LITTLE_PADDING = 0.04
_ALIKE = 8
# After this many passes without running out of memory, batches may be a quarter larger again: what took the memory may
# be gone. If not, one pass in this many is tried in halves.
_PASSES_TO_GROW = 500
# A shared-out batch is at least this part of a full one: below it, the cost of a pass itself counts.
_LEAST_PART = 4
# A request that this many passes finish is not long.
_FEW_PASSES = 8


class Entry(NamedTuple):
    """One item that waits: the request (`job`) it belongs to, its position there, its length in tokens as its engine
    computes it, and its group.
    """

    job: int
    position: int
    length: int
    group: Hashable = None


class Pending(NamedTuple):
    """A request that waits, as admission sees it."""

    deadline: float
    tokens: int


@dataclass(slots=True)
class _Job:
    """The items of each group that wait, as (length, position), shortest first: the longest is taken off the end."""

    number: int
    terms: Terms
    tokens: int = 0
    groups: dict[Hashable, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Priority, the class of size (2 to 8 tokens, to 32, to 128, ...), and the order of arrival."""
        return self.terms.priority, self.tokens.bit_length() // 2, self.number

    @property
    def dated(self) -> bool:
        return self.terms.deadline < inf and not self.terms.urgent

    @property
    def longest_group(self) -> Hashable:
        """The group of the longest item that waits."""
        if len(self.groups) == 1:
            return next(iter(self.groups))
        return max(self.groups, key=lambda group: self.groups[group][-1][0])

    def add(self, entries: Sequence[Entry]) -> None:
        kinds = {entry.group for entry in entries}
        for kind in kinds:
            waiting = self.groups.setdefault(kind, [])
            waiting += [(one.length, one.position) for one in entries if len(kinds) == 1 or one.group == kind]
            waiting.sort()

    def remove(self, entry: Entry) -> bool:
        """Whether it waited."""
        waiting = self.groups.get(entry.group, [])
        place = bisect_left(waiting, (entry.length, entry.position))
        if place == len(waiting) or waiting[place] != (entry.length, entry.position):
            return False
        del waiting[place]
        self.forget_empty(entry.group)
        return True

    def forget_empty(self, group: Hashable) -> None:
        if not self.groups[group]:
            del self.groups[group]


@dataclass(slots=True)
class _Caller:
    """One caller's requests: oldest first in `jobs`, and by work left in `ranks`."""

    served: float
    tokens: int = 0
    dated_tokens: int = 0
    turn: int = 0
    jobs: dict[int, _Job] = field(default_factory=dict)
    ranks: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def oldest(self) -> int:
        """The number of its oldest request; it must have one."""
        return next(iter(self.jobs))

    def add(self, job: _Job) -> None:
        self.jobs[job.number] = job
        insort(self.ranks, job.rank)
        self._count(job, tokens=job.tokens)

    def remove(self, job: _Job) -> None:
        del self.jobs[job.number]
        del self.ranks[bisect_left(self.ranks, job.rank)]
        self._count(job, tokens=-job.tokens)

    def grow(self, job: _Job, *, tokens: int) -> None:
        """Note that this many more of a request's tokens wait; it keeps its rank among the others."""
        del self.ranks[bisect_left(self.ranks, job.rank)]
        job.tokens += tokens
        insort(self.ranks, job.rank)
        self._count(job, tokens=tokens)

    def shrink(self, job: _Job, *, tokens: int) -> None:
        """Note that this many of a request's tokens wait no longer; a request without any is forgotten."""
        self.grow(job, tokens=-tokens)
        if not job.groups:
            self.remove(job)

    def in_order(self) -> Iterator[_Job]:
        """Which request is served first while no deadline is in danger."""
        if not self.jobs:
            return iter(())
        self.turn += 1
        order = [number for _, _, number in self.ranks[:_MOST_ASKED]]
        if self.turn % _TURNS == 0:
            order = [self.oldest, *order]
        return (self.jobs[number] for number in dict.fromkeys(order) if number in self.jobs)

    def _count(self, job: _Job, *, tokens: int) -> None:
        self.tokens += tokens
        if job.dated:
            self.dated_tokens += tokens


class _Deadlines:
    """The requests of all callers that have a deadline, the earliest first."""

    def __init__(self) -> None:
        self._dues: list[tuple[float, int, _Caller, _Job]] = []

    def add(self, caller: _Caller, job: _Job) -> None:
        if job.dated:
            insort(self._dues, (job.terms.deadline, job.number, caller, job))

    def remove(self, job: _Job) -> None:
        if job.dated:
            del self._dues[bisect_left(self._dues, (job.terms.deadline, job.number))]

    def since(self, deadline: float) -> list[Pending]:
        start = bisect_left(self._dues, (deadline, -1))
        return [Pending(due, job.tokens) for due, _, _, job in self._dues[start:]]

    def are_tight(self, now: float, seconds_per_token: float) -> bool:
        ahead_s = 0.0
        for deadline, _, _, job in self._dues:
            ahead_s += job.tokens * seconds_per_token
            if deadline - now < _DEADLINE_MARGIN * ahead_s:
                return True
        return False

    def in_order(self, now: float, seconds_per_token: float) -> list[tuple[_Caller, _Job]]:
        """The earliest first, and last what would be late even if the engine did nothing else from now on. A request
        that takes a partial answer is never too late, and is done when the deadline comes.
        """
        in_time, too_late, ahead_s = [], [], 0.0
        for deadline, _, caller, job in self._dues:
            done_s = ahead_s + job.tokens * seconds_per_token
            if now + done_s > deadline and not job.terms.partial:
                too_late.append((caller, job))
            else:
                in_time.append((caller, job))
                ahead_s = min(done_s, max(ahead_s, deadline - now))
        return in_time + too_late


class BatchPlanner:
    """Holds what waits for one model."""

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_batch_pairs: int,
        workers: int = 1,
        padded: bool = True,
        stretch: float = 1.0,
        max_padding: float = 0.25,
        rounded_length: Callable[[int], int] = int,
    ) -> None:
        # How many tokens the engine computes for a sequence: those that it computes as equally long may share a batch.
        self.length = rounded_length
        self.max_batch_tokens = max_batch_tokens
        self._usual_batch_tokens = max_batch_tokens
        self._passes_that_fit = 0
        self.max_batch_pairs = max_batch_pairs
        self._workers = workers
        self._padded = padded
        self._stretch = stretch
        self._max_padding = max_padding
        self._urgent = _Caller(served=-inf)
        self._callers: dict[str, _Caller] = {}
        self._caller_of: dict[int, _Caller] = {}
        self._deadlines = _Deadlines()
        self._floor = 0.0
        self.waiting_tokens = 0

    def another(self) -> "BatchPlanner":
        """An empty one with the same limits, whose passes are never stretched."""
        return BatchPlanner(
            max_batch_tokens=self._usual_batch_tokens,
            max_batch_pairs=self.max_batch_pairs,
            workers=self._workers,
            padded=self._padded,
            max_padding=self._max_padding,
            rounded_length=self.length,
        )

    def __bool__(self) -> bool:
        return bool(self._caller_of)

    @property
    def active_callers(self) -> int:
        """How many callers share the engine now."""
        return sum(1 for caller in self._callers.values() if caller.jobs)

    def tokens_of(self, caller: str) -> int:
        """Tokens that wait for one caller."""
        return self._callers[caller].tokens if caller in self._callers else 0

    def is_light(self, caller: str, *, tokens: int = 0, others: int = 0) -> bool:
        """Whether a caller with this many `tokens` more has much less than its share of the queue. `others` are tokens
        of other callers that do not wait here yet.
        """
        own = self.tokens_of(caller)
        callers = self.active_callers + (not own)
        return (own + tokens) * callers * _LIGHT <= self.waiting_tokens + tokens + others

    def ahead_of_light(self, caller: str) -> int:
        """Tokens that wait and may be served before a light caller's next request, deadlines or not: those of light
        callers, itself among them.
        """
        callers = self.active_callers
        return sum(
            one.tokens for name, one in self._callers.items() if name == caller or self._is_light(one, callers=callers)
        )

    def dated_tokens_of(self, caller: str) -> int:
        """Those of them that have a deadline."""
        return self._callers[caller].dated_tokens if caller in self._callers else 0

    def queue(self, *, deadline: float) -> tuple[int, list[Pending]]:
        """Of all callers' requests, tokens of those with an earlier deadline, and those with a later one in its order.

        The first is no sum over requests: thousands of them may wait.
        """
        dated_tokens = sum(caller.dated_tokens for caller in self._callers.values())
        later = self._deadlines.since(deadline)
        return dated_tokens - sum(one.tokens for one in later), later

    def area(self, lengths: Sequence[int]) -> int:
        """The tokens that the engine computes for items of these lengths in one pass."""
        return len(lengths) * max(lengths) if self._padded else sum(lengths)

    def batch_did_not_fit(self, *, area: int) -> None:
        """The device had no memory for a batch of this area: cut batches of half of it."""
        self.max_batch_tokens = min(self.max_batch_tokens, max(1, area // 2))
        self._passes_that_fit = 0

    def batch_fitted(self) -> None:
        if self.max_batch_tokens == self._usual_batch_tokens:
            return
        self._passes_that_fit += 1
        if self._passes_that_fit == _PASSES_TO_GROW:
            self.max_batch_tokens = min(self._usual_batch_tokens, -(-self.max_batch_tokens * 5 // 4))
            self._passes_that_fit = 0

    def add(self, entries: Sequence[Entry], terms: Terms) -> None:
        """Queue items of a request, at least one; more of them may follow."""
        number = entries[0].job
        tokens = sum(entry.length for entry in entries)
        caller = self._caller_of.get(number) or (self._urgent if terms.urgent else self._caller(terms.caller))
        job = caller.jobs.get(number)
        if job is None:
            job = _Job(number, terms)
            caller.add(job)
            self._deadlines.add(caller, job)
        job.add(entries)
        caller.grow(job, tokens=tokens)
        self._caller_of[number] = caller
        self.waiting_tokens += tokens

    def withdraw(self, number: int) -> int:
        """Forget a request's waiting items and return how many tokens that saved."""
        caller = self._caller_of.pop(number, None)
        if caller is None:
            return 0
        job = caller.jobs[number]
        caller.remove(job)
        self._deadlines.remove(job)
        self.waiting_tokens -= job.tokens
        return job.tokens

    def remove(self, entry: Entry) -> None:
        """Forget one waiting item; nothing happens if it waits no longer."""
        caller = self._caller_of.get(entry.job)
        if caller is None:
            return
        job = caller.jobs[entry.job]
        if job.remove(entry):
            self._shrink(caller, job, tokens=entry.length)

    def next_batch(self, *, now: float = 0.0, seconds_per_token: float = 0.0) -> list[Entry]:
        """Take the items of the next pass off the queue; empty when nothing waits.

        `now` is on the clock of the deadlines; `seconds_per_token` is how fast waiting work goes, all workers together.
        """
        if not self:
            return []
        active = sorted(
            (caller for caller in self._callers.values() if caller.jobs),
            key=lambda caller: (caller.served, caller.oldest),
        )
        if active:
            self._floor = max(self._floor, active[0].served)
            self._forget_callers()
        pass_s = seconds_per_token * self._workers * min(self.max_batch_tokens, self.waiting_tokens)
        in_haste = self._deadlines.are_tight(now + _PASSES_TO_SPARE * pass_s, seconds_per_token)
        dated = self._deadlines.in_order(now, seconds_per_token) if in_haste else []
        urgent = ((self._urgent, job) for job in self._urgent.in_order())
        light = takewhile(partial(self._is_light, callers=len(active)), active) if in_haste else ()
        first = ((caller, job) for caller in light for job in caller.in_order())
        fair = ((caller, job) for caller in active for job in caller.in_order())
        asked = list(islice(chain(urgent, first, dated, fair), _MOST_ASKED))
        batch = _Batch(max_tokens=self._budget(asked[0][1]), max_pairs=self.max_batch_pairs, padded=self._padded)
        alike = _alike(asked) if self._padded and not in_haste else []
        little = min(_LITTLE_PADDING, self._max_padding)
        for batch.max_padding, requests in ((little, alike), (self._max_padding, asked)):
            for caller, job in requests:
                if batch.full:
                    break
                self._take(batch, caller, job)
        return batch.entries

    def _is_light(self, caller: _Caller, *, callers: int) -> bool:
        return caller.tokens * callers * _LIGHT <= self.waiting_tokens

    def _caller(self, name: str) -> _Caller:
        """The caller; if it was away, it may catch up by no more than its credit."""
        caller = self._callers.setdefault(name, _Caller(served=-inf))
        if not caller.jobs:
            caller.served = max(caller.served, self._floor - _CREDIT_TOKENS)
            caller.turn = 0
        return caller

    def _forget_callers(self) -> None:
        """Drop idle callers that have regained their full credit."""
        least = self._floor - _CREDIT_TOKENS
        for name in [name for name, caller in self._callers.items() if not caller.jobs and caller.served <= least]:
            del self._callers[name]

    def _budget(self, first: _Job) -> int:
        """How many tokens a batch may hold that begins with this request."""
        most, stretched = self.max_batch_tokens, int(self._stretch * self.max_batch_tokens)
        if most < first.tokens <= _FEW_PASSES * stretched:
            most = min(stretched, first.tokens)
        if self._workers == 1:
            return most
        part = -(-self.waiting_tokens // self._workers)
        return min(most, max(part, self.max_batch_tokens // _LEAST_PART))

    def _take(self, batch: "_Batch", caller: _Caller, job: _Job) -> None:
        """Move a request's longest items that the batch takes; the first of them decides the batch's group."""
        if not batch.entries:
            batch.group = job.longest_group
        waiting = job.groups.get(batch.group, [])
        tokens = 0
        end = bisect_right(waiting, batch.room, key=_length)
        while end and batch.takes(waiting[end - 1][0]):
            end -= 1
            length, position = waiting.pop(end)
            batch.add(Entry(job.number, position, length, batch.group))
            tokens += length
            if end and waiting[end - 1][0] > (room := batch.room):
                end = bisect_right(waiting, room, hi=end, key=_length)
        if tokens:
            job.forget_empty(batch.group)
            caller.served += tokens * sqrt(caller.tokens / _USUAL_TOKENS)
            self._shrink(caller, job, tokens=tokens)

    def _shrink(self, caller: _Caller, job: _Job, *, tokens: int) -> None:
        caller.shrink(job, tokens=tokens)
        self.waiting_tokens -= tokens
        if not job.groups:
            self._deadlines.remove(job)
            del self._caller_of[job.number]


def _alike(asked: Sequence[tuple[_Caller, _Job]]) -> list[tuple[_Caller, _Job]]:
    """Requests that can share a batch with the first one without delaying it: its caller's, and not much larger."""
    first_caller, first = asked[0]
    return [(caller, job) for caller, job in asked if caller is first_caller and job.tokens <= _ALIKE * first.tokens]


def _length(waiting: tuple[int, int]) -> int:
    return waiting[0]


class _Batch:
    """A batch that is being filled, its longest item first."""

    def __init__(self, *, max_tokens: int, max_pairs: int, padded: bool) -> None:
        self._max_tokens = max_tokens
        self._max_pairs = max_pairs
        self._padded = padded
        self.max_padding = 0.0
        self.group: Hashable = None
        self._tokens = 0
        self._longest = 0
        self.entries: list[Entry] = []

    @property
    def room(self) -> float:
        """The longest item that fits. The first always does, so that an oversize one is not stuck for ever."""
        if not self.entries:
            return inf
        size = len(self.entries) + 1
        if size > self._max_pairs:
            return 0
        if not self._padded:
            return self._max_tokens - self._tokens
        return self._longest if size * self._longest <= self._max_tokens else 0

    @property
    def full(self) -> bool:
        return self.room <= 0

    def takes(self, length: int) -> bool:
        """Whether an item that fits does not bring too much padding."""
        if not self._padded or not self.entries:
            return True
        area = (len(self.entries) + 1) * self._longest
        return area - self._tokens - length <= self.max_padding * area

    def add(self, entry: Entry) -> None:
        self._longest = self._longest or entry.length
        self._tokens += entry.length
        self.entries.append(entry)
