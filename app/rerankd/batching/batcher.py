"""The asynchronous shell around the planner: futures, the worker's threads, and failures that stay where they arose.

Never waits while a worker is idle, and never holds a batch back: while all workers are busy, what arrives gathers in
the planner, until one of them should be about to be idle. Then its next batch is cut, so that a thread finds it as
soon as its pass is over. Equal items that are open at the same time are computed once. What an item holds, and what a
result is, only the engine and the stage know.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import count
from math import inf
from time import perf_counter
from typing import Final, Generic, TypeVar

from rerankd.batching.admission import Admission, Estimate, TextLengths
from rerankd.batching.cost import CostModel
from rerankd.batching.passes import Pass, Passes
from rerankd.batching.planner import BatchPlanner, Entry
from rerankd.batching.ticket import Outcome, Ticket
from rerankd.batching.work import Results, Work, WorkItem, work_of
from rerankd.concurrency.worker import in_chunks, release
from rerankd.domain import Terms
from rerankd.errors import (
    DeadlineExceeded,
    OutOfMemory,
    Overloaded,
    RerankError,
    ScoringFailed,
    Unavailable,
)
from rerankd.telemetry.observer import Observer
from rerankd.telemetry.spans import Attributes, Span, current_span, joint_span, leave_trace

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# A pass that takes this many times as long as expected, and longer than the operator waits, has hung: its worker is
# given up, and its items are tried in smaller batches.
_STUCK_FACTOR = 20.0
# The first passes may compile for minutes.
_FIRST_PASSES_FACTOR = 30.0
# The next batch is cut when a pass should take this long yet: what its hand-over takes while all cores are busy, and
# what predictions are wrong by. What arrives after that waits for the batch behind.
_HANDOVER_S = 0.001
_HANDOVER_SHARE = 0.1
_UNTRACED: Final = nullcontext()


class _Job(Generic[T, R]):
    """A request's items, and its answer once all of them have a result."""

    def __init__(self, items: list[WorkItem[T]], terms: Terms, *, now: float) -> None:
        self.items = items
        self.urgent = terms.urgent
        self.deadline = terms.deadline
        self.compute = terms.meter.compute
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.results: list[R | None] = [None] * len(items)
        self.open = len(items)
        self.submitted = now
        self.started: float | None = None
        self.ended = now
        # What it is traced in.
        self.origin = current_span()

    def receive(self, index: int, result: R, *, now: float) -> None:
        self.results[index] = result
        self.ended = now
        self.open -= 1
        if not self.open:
            self.answer.set_result(None)

    @property
    def unfinished(self) -> list[int]:
        """The places of items without a result."""
        return [index for index, result in enumerate(self.results) if result is None] if self.open else []

    def outcome(self) -> Outcome[R]:
        started = self.submitted if self.started is None else self.started
        finished = [index for index, result in enumerate(self.results) if result is not None] if self.open else None
        return Outcome(
            results=[result for result in self.results if result is not None],
            finished=finished,
            queue_s=started - self.submitted,
            inference_s=max(0.0, self.ended - started),
        )


class _Running(Generic[T]):
    """An item on its way through the engine, its length there, and the entries that want its result. `shares` is the
    pass, with all of its items, if it can be cancelled.
    """

    __slots__ = ("item", "length", "shares", "wanted_by")

    def __init__(self, item: WorkItem[T], length: int, wanted_by: list[Entry]) -> None:
        self.item = item
        self.length = length
        self.wanted_by = wanted_by
        self.shares: tuple[Pass, Sequence[_Running[T]]] | None = None


class Batcher(Generic[T, R]):
    """Mixes the items of many requests into passes of one engine."""

    def __init__(  # noqa: PLR0913 - what it works with, and what it is told of the model
        self,
        planner: BatchPlanner,
        passes: Passes[T, R],
        *,
        max_waiting_tokens: int,
        model: str,
        observer: Observer,
        stuck_after_s: float = 60.0,
        coalesce: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._planner = planner
        # Work that nobody waits for has passes of its own, when nothing else waits.
        self._background = planner.another()
        self._clock = clock
        self._engine = passes
        self._model = model
        self._observer = observer
        self._cost = CostModel()
        self._stuck_after_s = stuck_after_s
        self._coalesce = coalesce
        self._failures_logged: set[type[Exception]] = set()
        self.lengths = TextLengths()
        self.admission = Admission(planner, self._cost, max_waiting_tokens=max_waiting_tokens, workers=passes.limit)
        self._jobs: dict[int, _Job[T, R]] = {}
        # Open entries by what tells their items apart: those that wait, and those whose pass runs.
        self._waiting: dict[bytes, list[Entry]] = {}
        self._running: dict[bytes, _Running[T]] = {}
        self._passes: set[Pass] = set()
        self._clearing: set[asyncio.Task[None]] = set()
        self._numbers = count()
        self._work_waits = asyncio.Event()
        self._ended_at = -inf
        self._closed = False
        # Requests that are traced.
        self._traced = 0
        observer.engine_started(model=model, workers=passes.limit, max_waiting_tokens=max_waiting_tokens)

    def alive_at(self) -> float:
        """When the engine was last seen to work: now while a pass takes no longer than it may, else when one ended."""
        now = self._clock()
        in_time = any(one.started is not None and now < one.started + self._ordinary_s(one) for one in self._passes)
        return now if in_time else self._ended_at

    @asynccontextmanager
    async def admit(self, estimate: Estimate, terms: Terms) -> AsyncIterator[Ticket[T, R]]:
        """Admit a request, or refuse it, before its texts are tokenized.

        Raises:
            Overloaded: too much waits, or the deadline cannot be met now; `retry_after_s` says when to come back.
            DeadlineExceeded: the deadline could not be met by an idle server either.
            Unavailable: the model was stopped.
        """
        forecast = self.lengths.forecast(estimate, caller=terms.caller)
        ticket = Ticket(self.lengths, self.reserve(forecast.work, terms), terms, forecast)
        try:
            yield ticket
        finally:
            ticket.release()

    def reserve(self, work: Work, terms: Terms) -> "BatcherReservation[T, R]":
        """Admit this much work, or refuse it; nothing is held for it yet.

        Raises:
            Overloaded, DeadlineExceeded, Unavailable: see `admit`.
        """
        self.check(work, terms)
        return BatcherReservation(self, terms)

    async def fits(self, estimate: Estimate, terms: Terms) -> bool:
        """Whether a request would be answered whole before its deadline, as far as can be known now."""
        return self.fits_work(self.lengths.forecast(estimate, caller=terms.caller).work, terms)

    def fits_work(self, work: Work, terms: Terms) -> bool:
        """The same for this much work."""
        now = self._clock()
        return self.admission.fits(work, replace(terms, partial=False), now=now, busy_s=self._busy_s(now))

    def _busy_s(self, now: float) -> float:
        """What the passes that run will still take."""
        return sum(one.left_s(now) for one in self._passes) / self._engine.limit

    async def serve(self, items: list[WorkItem[T]], terms: Terms) -> Outcome[R]:
        """Compute the items of an admitted request.

        Raises:
            DeadlineExceeded, ScoringFailed, Unavailable: see `Ticket.run`.
        """
        if self._closed:
            raise _gone(self._model)
        number = next(self._numbers)
        now = self._clock()
        if not self._coalesce:
            items = [item._replace(identity=b"%d/%d" % (number, position)) for position, item in enumerate(items)]
        job: _Job[T, R] = _Job(items, terms, now=now)
        self._jobs[number] = job
        self._traced += job.origin is not None
        try:
            await self._enter(number, job, terms)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, terms.deadline - now) if terms.deadline < inf else None):
                    await job.answer
            if job.open:
                self._observer.deadline_missed(model=self._model)
                if not terms.partial:
                    raise _too_late(job, terms)
            outcome = job.outcome()
            if job.origin is not None:
                self._record(job.origin, job, outcome)
            return outcome
        finally:
            self._traced -= job.origin is not None
            self._withdraw(number, job)
            # An error holds this frame, and the job's future the error: the request would stay in memory until the
            # garbage collector comes. (For the same reason no error is raised while a TimeoutError is handled.)
            del job

    def _record(self, origin: Span, job: _Job[T, R], outcome: Outcome[R]) -> None:
        """Tell a request's trace when its items waited, and when the engine had them."""
        ago_s = self._clock() - job.submitted
        told: Attributes = {"rerankd.model": self._model, "rerankd.items": len(job.results)}
        origin.record("queue", told, ago_s=ago_s, seconds=outcome.queue_s)
        origin.record("inference", told, ago_s=ago_s - outcome.queue_s, seconds=outcome.inference_s)

    def lengths_of(self, items: Sequence[WorkItem[T]]) -> list[int]:
        """In tokens, as the engine computes them."""
        return [self._planner.length(item.cost) for item in items]

    def rounded(self, longest: int) -> list[int]:
        """As how many tokens the engine computes each length, from 0 to `longest`."""
        return [0, *map(self._planner.length, range(1, longest + 1))]

    async def run(self) -> None:
        """Serve until cancelled; requests that still wait then fail, since the model is gone."""
        leave_trace()
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._engine.limit):
                    workers.create_task(self._work())
        finally:
            self._closed = True
            for job in self._jobs.values():
                _fail(job, _gone(self._model))

    def check(self, work: Work, terms: Terms, admitted: Work | None = None) -> None:
        """Refuse a request, or do nothing; `admitted` is what one that is checked again was admitted for.

        Raises:
            Overloaded, DeadlineExceeded, Unavailable: see `admit`.
        """
        if self._closed:
            raise _gone(self._model)
        now = self._clock()
        try:
            self.admission.check(work, terms, now=now, busy_s=self._busy_s(now), admitted=admitted)
        except (Overloaded, DeadlineExceeded) as refusal:
            self._observer.request_shed(model=self._model, reason=refusal.code)
            raise

    async def _enter(self, number: int, job: _Job[T, R], terms: Terms) -> None:
        """Queue a request's items; those of a large one in chunks of whole passes, so that the event loop is not held
        up, and no pass begins with less than it could have.
        """
        async for span in in_chunks(len(job.items), of=self._planner.max_batch_pairs):
            waiting = self._joined(number, job, range(span.start, span.stop))
            if waiting:
                (self._background if terms.background else self._planner).add(waiting, terms)
                self._queue_changed()
                self._work_waits.set()

    def _joined(self, number: int, job: _Job[T, R], positions: range) -> list[Entry]:
        """Attach a chunk to the passes that run for equal items, and return what is left to wait."""
        waiting = []
        for position in positions:
            identity, cost, group, _ = job.items[position]
            entry = Entry(number, position, self._planner.length(cost), group)
            if identity in self._running:
                self._running[identity].wanted_by.append(entry)
                job.compute(cost)
            else:
                self._waiting.setdefault(identity, []).append(entry)
                waiting.append(entry)
        if len(waiting) < len(positions):
            self._observer.pairs_coalesced(model=self._model, pairs=len(positions) - len(waiting))
            job.started = job.started or job.submitted
        return waiting

    def _withdraw(self, number: int, job: _Job[T, R]) -> None:
        """Drop at once what still waits of a request. Clean up the rest in the background so that the response is not
        delayed.
        """
        job.answer.cancel()
        saved = self._planner.withdraw(number) + self._background.withdraw(number)
        if saved:
            self._observer.work_cancelled(model=self._model, tokens=saved)
            self._queue_changed()
        clearing = asyncio.create_task(self._clear(number, job))
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)

    async def _clear(self, number: int, job: _Job[T, R]) -> None:
        unfinished = job.unfinished
        left: dict[Pass, Sequence[_Running[T]]] = {}
        async for span in in_chunks(len(unfinished)):
            for position in unfinished[span]:
                identity = job.items[position].identity
                self._forget(identity, number)
                if identity in self._running and (shares := self._running[identity].shares) is not None:
                    left[shares[0]] = shares[1]
        del self._jobs[number]
        for one, batch in left.items():
            if one in self._passes and not any(running.wanted_by for running in batch):
                one.cancel()
        await release(job.items)

    def _forget(self, identity: bytes, number: int) -> None:
        """Take a request off those that want an item's result."""
        if identity in self._running:
            wanted_by = self._running[identity].wanted_by
            wanted_by[:] = [entry for entry in wanted_by if entry.job != number]
        elif identity in self._waiting:
            remaining = [entry for entry in self._waiting[identity] if entry.job != number]
            if remaining:
                self._waiting[identity] = remaining
            else:
                del self._waiting[identity]

    async def _next_batch(self) -> list[_Running[T]]:
        while not (planner := self._planner or self._background):
            self._work_waits.clear()
            await self._work_waits.wait()
        now = self._clock()
        batch = planner.next_batch(now=now, seconds_per_token=self.admission.seconds_per_token)
        running = self._send(batch, now=now)
        self._queue_changed()
        return running

    def _send(self, batch: Sequence[Entry], *, now: float) -> list[_Running[T]]:
        """Take items, and all that are equal to them, out of the queue."""
        sent: list[_Running[T]] = []
        for entry in batch:
            job = self._jobs[entry.job]
            item = job.items[entry.position]
            if item.identity in self._running:
                continue  # equal to one before it
            job.started = job.started or now
            running = self._running[item.identity] = _Running(item, entry.length, self._waiting.pop(item.identity))
            sent.append(running)
            job.compute(item.cost)
            if len(running.wanted_by) > 1:
                self._take_equal(running, entry)
        return sent

    def _take_equal(self, running: _Running[T], sent: Entry) -> None:
        """Take those out of the queue that are equal to one that is sent."""
        for other in running.wanted_by:
            if other != sent:
                self._jobs[other.job].compute(running.item.cost)
                self._planner.remove(other)
                self._background.remove(other)
        self._observer.pairs_coalesced(model=self._model, pairs=len(running.wanted_by) - 1)

    def _queue_changed(self) -> None:
        waiting = self._planner.waiting_tokens
        self._observer.queue_changed(
            model=self._model, waiting_tokens=waiting, waiting_s=waiting * self.admission.seconds_per_token
        )

    async def _work(self) -> None:
        """Keep one of the worker's threads busy, with one pass that runs and one that is handed over just before the
        first ends. Scores are given out and answers written while the next pass runs.
        """
        async with asyncio.TaskGroup() as scoring:
            before: asyncio.Task[None] | None = None
            while True:
                batch, running = await self._next_batch(), Pass()
                task = scoring.create_task(self._score(batch, running, tries=2))
                if before is not None:
                    await before
                await self._nearly_over(task, running)
                before = task

    async def _nearly_over(self, scoring: asyncio.Task[None], running: Pass) -> None:
        """Wait until a batch is scored, or should be in a moment."""
        await asyncio.sleep(0)  # it is handed over
        if not self._cost.known:
            await asyncio.wait({scoring})
            return
        left_s = running.left_s(self._clock()) - _HANDOVER_S - _HANDOVER_SHARE * running.expected_s
        if left_s > 0:
            await asyncio.wait({scoring}, timeout=left_s)

    async def _score(self, batch: Sequence[_Running[T]], running: Pass, *, tries: int) -> None:
        """Compute a batch; if it fails, its halves, down to the one item that the engine cannot take. Each item has
        `tries`, so that one which was alone when a worker died is not taken for the cause.
        """
        batch = [one for one in batch if self._is_awaited(one)]
        if not batch:
            return
        try:
            results = await self._compute(batch, running)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises; it is logged, and isolated
            if running.cancelled:
                # Unless somebody has come who wants one of them, nothing is left of it.
                await self._score(batch, Pass(), tries=tries)
                return
            self._observer.batch_failed(model=self._model, pairs=len(batch))
            if isinstance(error, RerankError):
                self._fail_all(batch, error)
                return
            self._log_failure(error, pairs=len(batch))
            if isinstance(error, OutOfMemory) and len(batch) > 1:
                self._learn_budget(batch)
            await self._isolate_failure(batch, tries=tries - 1)
        else:
            self._deliver(batch, results, seconds=running.seconds)

    def _log_failure(self, error: Exception, *, pairs: int) -> None:
        """With its trace the first time that one of its kind comes; a batch that fails is tried in halves, and each of
        these may fail again.
        """
        known = type(error) in self._failures_logged
        self._failures_logged.add(type(error))
        logger.error(
            "batch of %d pairs failed%s",
            pairs,
            "; its halves are tried" if pairs > 1 else "",
            exc_info=None if known else error,
            extra={"model": self._model, "reason": f"{error!r:.200}"},
        )

    async def _compute(self, batch: Sequence[_Running[T]], running: Pass) -> Results[R]:
        tokens, squares = work_of([one.length for one in batch])
        running.expected_s = self._cost.seconds(tokens=tokens, squares=squares)
        if self._engine.cancellable:
            running.deadline = max(self._jobs[entry.job].deadline for one in batch for entry in one.wanted_by)
            for one in batch:
                one.shares = running, batch
        self._passes.add(running)
        try:
            with self._traced_pass(batch) if self._traced else _UNTRACED:
                async with asyncio.timeout(self._patience_s(running)) as running.scope:
                    payloads = [one.item.payload for one in batch]
                    results = await self._engine.run(running, payloads, self._clock)
        except TimeoutError:
            self._engine.give_up()
            self._observer.thread_given_up(model=self._model)
            raise TimeoutError(f"the engine did not come back within {self._patience_s(running):.0f} s") from None
        finally:
            self._passes.remove(running)
        self._ended_at = self._clock()
        if len(results) != len(batch):
            raise ValueError(f"the engine gave {len(results)} results for {len(batch)} items")
        if any(not self._jobs[entry.job].urgent for one in batch for entry in one.wanted_by):
            self._cost.learn(tokens=tokens, squares=squares, seconds=running.seconds)
        return results

    def _traced_pass(self, batch: Sequence[_Running[T]]) -> AbstractContextManager[object]:
        """The span of a pass, which belongs to every request with an item in it."""
        origins = {self._jobs[entry.job].origin for one in batch for entry in one.wanted_by}
        told: Attributes = {
            "rerankd.model": self._model,
            "rerankd.items": len(batch),
            "rerankd.padded_tokens": self._area(batch),
        }
        return joint_span("pass", told, [origin for origin in origins if origin is not None])

    def _patience_s(self, running: Pass) -> float:
        """How long a pass may take."""
        if not self._cost.known:
            return _FIRST_PASSES_FACTOR * self._stuck_after_s
        return max(self._stuck_after_s, self._ordinary_s(running))

    def _ordinary_s(self, running: Pass) -> float:
        """How long a pass may take before it is odd."""
        return _STUCK_FACTOR * running.expected_s if self._cost.known else self._stuck_after_s

    def _learn_budget(self, batch: Sequence[_Running[T]]) -> None:
        """Cut batches of half this one's area for some time."""
        for planner in (self._planner, self._background):
            planner.batch_did_not_fit(area=self._area(batch))
        logger.warning(
            "out of memory: batches have at most %d tokens for some time",
            self._planner.max_batch_tokens,
            extra={"model": self._model},
        )

    async def _isolate_failure(self, batch: Sequence[_Running[T]], *, tries: int) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._score(batch[:middle], Pass(), tries=tries)
            await self._score(batch[middle:], Pass(), tries=tries)
            return
        if tries > 0:
            await self._score(batch, Pass(), tries=tries)
            return
        self._fail_all(batch, ScoringFailed("the model failed on one of the documents; the server's log has the cause"))

    def _fail_all(self, batch: Sequence[_Running[T]], failure: RerankError) -> None:
        """Tell all requests that want one of these items of a failure. An engine that raises one of our own errors has
        tried again itself, and means this for them.
        """
        for one in batch:
            for entry in self._running.pop(one.item.identity).wanted_by:
                _fail(self._jobs[entry.job], failure)

    def _area(self, batch: Sequence[_Running[T]]) -> int:
        """The tokens that the engine computes for a batch, padding included."""
        return self._planner.area([one.length for one in batch])

    def _is_awaited(self, running: _Running[T]) -> bool:
        """Whether its result is still wanted; if not, it is dropped."""
        for entry in running.wanted_by:
            if not self._jobs[entry.job].answer.done():
                return True
        self._running.pop(running.item.identity, None)
        return False

    def _deliver(self, batch: Sequence[_Running[T]], results: Results[R], *, seconds: float) -> None:
        now = self._clock()
        self._planner.batch_fitted()
        self._background.batch_fitted()
        for one, result in zip(batch, results, strict=True):
            for entry in self._running.pop(one.item.identity).wanted_by:
                job = self._jobs[entry.job]
                if not job.answer.done():
                    job.receive(entry.position, result, now=now)
        self._observer.batch_scored(
            model=self._model,
            pairs=len(batch),
            tokens=sum(one.item.cost for one in batch),
            padded_tokens=self._area(batch),
            seconds=seconds,
        )


class BatcherReservation(Generic[T, R]):
    """What a request holds of the queue of a batcher."""

    def __init__(self, batcher: Batcher[T, R], terms: Terms) -> None:
        self._batcher = batcher
        self._terms = terms
        self._held = 0

    def hold(self, tokens: int) -> None:
        if tokens != self._held:
            self._batcher.admission.reserve(self._terms.caller, tokens - self._held)
            self._held = tokens

    def check_again(self, work: Work, admitted: Work) -> None:
        self.hold(0)
        self._batcher.check(work, self._terms, admitted)

    def take_back(self, tokens: int) -> None:
        self._batcher.admission.take_back(self._terms.caller, tokens)

    async def serve(self, items: list[WorkItem[T]]) -> Outcome[R]:
        return await self._batcher.serve(items, self._terms)


def _fail(job: _Job[T, R], failure: RerankError) -> None:
    if not job.answer.done():
        job.answer.set_exception(failure)


def _too_late(job: _Job[T, R], terms: Terms) -> DeadlineExceeded:
    if not terms.divisible:
        return DeadlineExceeded("the deadline came before there was an order: allow more time, or send fewer documents")
    return DeadlineExceeded(
        f"the deadline came when {job.open} of {len(job.items)} texts were not scored yet: allow more time, send "
        "fewer documents, or ask for what is there with on_deadline = partial"
    )


def _gone(model: str) -> Unavailable:
    return Unavailable(f"model {model!r} is being stopped")
