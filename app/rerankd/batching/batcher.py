"""The asynchronous shell around the planner: futures, the worker's threads, and failures that stay where they arose.

Never waits while a worker is idle, and never holds a batch back: while all workers are busy, what arrives gathers in
the planner, until one of them should be about to be idle. Then its next batch is cut, so that a thread finds it as
soon as its pass is over. Equal encodings that are open at the same time are scored once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from math import inf
from time import perf_counter

import numpy as np

from rerankd.batching.admission import Admission, Estimate, Work
from rerankd.batching.cost import CostModel
from rerankd.batching.planner import BatchPlanner, Entry
from rerankd.concurrency.worker import Worker, in_portions, let_go
from rerankd.domain import BoolArray, FloatArray, Terms
from rerankd.engines.base import Engine
from rerankd.errors import (
    DeadlineExceeded,
    FinalFailure,
    OutOfMemory,
    Overloaded,
    RerankError,
    ScoringFailed,
    Unavailable,
)
from rerankd.tasks.encoding import Encoding
from rerankd.telemetry.observer import Observer

logger = logging.getLogger(__name__)

# A pass that takes so many times as long as expected, and longer than the operator waits, has hung: its worker is given
# up, and its encodings are tried in smaller batches.
_STUCK_FACTOR = 20.0
# The first passes may compile for minutes.
_FIRST_PASSES_FACTOR = 30.0
# The next batch is cut when a pass should take so long yet: what its hand-over takes while all cores are busy, and what
# predictions are wrong by. What arrives after that waits for the batch behind.
_HANDOVER_S = 0.001
_HANDOVER_SHARE = 0.1

_ORDINARY = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """`logits` has shape [encodings, outputs], in the order of the encodings; rows that are not `scored` mean nothing.

    Times are wall seconds: until the first of them went to the engine, and from then to the last one's answer.
    """

    logits: FloatArray
    scored: BoolArray
    queue_s: float
    inference_s: float


class _Job:
    """A request's encodings, and its answer once all of them are scored."""

    def __init__(self, encodings: list[Encoding], identities: list[bytes], terms: Terms, *, now: float) -> None:
        self.encodings = encodings
        self.urgent = terms.urgent
        self.compute = terms.meter.compute
        self.identities = identities
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.logits: FloatArray | None = None
        self.scored = np.zeros(len(encodings), dtype=np.bool_)
        self.open = len(encodings)
        self.submitted = now
        self.started: float | None = None
        self.finished = now

    def receive(self, index: int, logits: FloatArray, *, now: float) -> None:
        if self.logits is None:
            self.logits = np.zeros((len(self.encodings), len(logits)), dtype=np.float32)
        self.logits[index] = logits
        self.scored[index] = True
        self.finished = now
        self.open -= 1
        if not self.open:
            self.answer.set_result(None)

    def result(self) -> Forwarded:
        started = self.submitted if self.started is None else self.started
        return Forwarded(
            logits=np.zeros((len(self.encodings), 1), dtype=np.float32) if self.logits is None else self.logits,
            scored=self.scored,
            queue_s=started - self.submitted,
            inference_s=max(0.0, self.finished - started),
        )


@dataclass(frozen=True, slots=True)
class _Item:
    """An encoding on its way through the engine, and who wants its logits."""

    identity: bytes
    encoding: Encoding
    wanted_by: list[Entry]


@dataclass(slots=True, eq=False)
class _Pass:
    """A forward pass: since when it runs, if it does, and how long it should take."""

    expected_s: float = 0.0
    started: float | None = None
    seconds: float = 0.0

    def left_s(self, now: float) -> float:
        """How long it should take yet."""
        return self.expected_s if self.started is None else max(0.0, self.started + self.expected_s - now)

    def run(
        self,
        forward: Callable[[Sequence[Encoding]], FloatArray],
        encodings: Sequence[Encoding],
        clock: Callable[[], float],
    ) -> FloatArray:
        """In the worker's thread."""
        self.started = clock()
        logits = forward(encodings)
        self.seconds = clock() - self.started
        return logits


def identities_of(encodings: Sequence[Encoding], *, scope: str = "") -> list[bytes]:
    """What tells each encoding from every other of the same model, and of another scope."""
    kind = blake2b(scope.encode(), digest_size=8).digest() if scope else b""
    return [kind + encoding.boundary.to_bytes(8) + encoding.ids.tobytes() for encoding in encodings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenised:
    """What some of a request's texts turned out to be: `tokens`, and `work` as the engine computes them. Those that
    were not cut are `whole_tokens` of `whole_characters`: only they tell how long texts are.
    """

    characters: int
    encodings: int
    tokens: int
    work: Work
    whole_characters: int
    whole_tokens: int


class Place:
    """A request's place in the queue, held while its texts are tokenised."""

    def __init__(self, batcher: "Batcher", terms: Terms, estimate: Estimate) -> None:
        self._batcher = batcher
        self._terms = terms
        self._estimate = estimate
        self._let_in = estimate.work
        self._tokens = 0
        self._hold(estimate.work.tokens)

    def correct(self, part: Tokenised) -> None:
        """Count a part of the request as what it turned out to be, and ask again if the whole is much more than it was
        let in for.

        Raises:
            Overloaded, DeadlineExceeded: as for a request that comes now.
            RateLimited: the caller's quota does not last for it.
        """
        self._terms.meter.read(part.tokens)
        admission = self._batcher.admission
        admission.learn_length(caller=self._terms.caller, characters=part.whole_characters, tokens=part.whole_tokens)
        self._estimate.correct(characters=part.characters, encodings=part.encodings, work=part.work)
        work = self._estimate.work
        if admission.is_surprising(work, let_in=self._let_in):
            self.leave()
            self._batcher.check(work, self._terms, let_in=self._let_in)
            self._let_in = work
        self._hold(work.tokens)

    async def forward(self, encodings: list[Encoding], identities: list[bytes]) -> Forwarded:
        """Score all encodings, once; see `Batcher.serve`."""
        self.leave()
        return await self._batcher.serve(encodings, identities, self._terms)

    def leave(self) -> None:
        self._hold(0)

    def leave_to_ask_again(self) -> None:
        """Leave, and let the request ask anew for what is left of it, as if it had not asked yet."""
        self.leave()
        self._batcher.admission.take_back(self._terms.caller, self._let_in.tokens)

    def _hold(self, tokens: int) -> None:
        self._batcher.admission.reserve(self._terms.caller, tokens - self._tokens)
        self._tokens = tokens


class Batcher:
    """Mixes the encodings of many requests into forward passes of one engine."""

    def __init__(  # noqa: PLR0913 - what it works with, and what it is told of the model
        self,
        planner: BatchPlanner,
        engine: Engine,
        worker: Worker,
        *,
        max_waiting_tokens: int,
        model: str,
        observer: Observer,
        stuck_after_s: float = 60.0,
        coalesce: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._planner = planner
        self._clock = clock
        self._engine = engine
        self._limits = engine.preferred_batch
        self._worker = worker
        self._model = model
        self._observer = observer
        self._cost = CostModel()
        self._stuck_after_s = stuck_after_s
        self._coalesce = coalesce
        self._failures_logged: set[type[Exception]] = set()
        self.admission = Admission(planner, self._cost, max_waiting_tokens=max_waiting_tokens, workers=worker.threads)
        self._jobs: dict[int, _Job] = {}
        # Open entries by what tells their encodings apart: those that wait, and those whose pass runs.
        self._waiting: dict[bytes, list[Entry]] = {}
        self._running: dict[bytes, _Item] = {}
        self._passes: set[_Pass] = set()
        self._clearing: set[asyncio.Task[None]] = set()
        self._numbers = count()
        self._work_waits = asyncio.Event()
        self._ended_at = -inf
        self._closed = False
        observer.engine_started(model=model, workers=worker.threads, max_waiting_tokens=max_waiting_tokens)

    def alive_at(self) -> float:
        """When the engine was last seen to work: now while a pass takes no longer than it may, else when one ended."""
        now = self._clock()
        in_time = any(one.started is not None and now < one.started + self._ordinary_s(one) for one in self._passes)
        return now if in_time else self._ended_at

    @contextmanager
    def place(self, *, characters: int, encodings: int, longest: int, terms: Terms) -> Iterator[Place]:
        """Let a request in, or refuse it, before its texts are tokenised and cut to `longest` tokens each.

        Raises:
            Overloaded: too much waits, or the deadline cannot be met now; `retry_after_s` says when to come back.
            DeadlineExceeded: the deadline could not be met by an idle server either.
            Unavailable: the model was stopped.
        """
        estimate = self.admission.estimate(
            characters=characters, encodings=encodings, longest=longest, caller=terms.caller
        )
        self.check(estimate.work, terms)
        place = Place(self, terms, estimate)
        try:
            yield place
        finally:
            place.leave()

    async def forward(self, encodings: Sequence[Encoding], terms: Terms = _ORDINARY) -> Forwarded:
        """Score all encodings. If the caller is cancelled, those that still wait are dropped.

        Raises:
            Overloaded, DeadlineExceeded: refused, see `place`; or the deadline came before the last score.
            ScoringFailed: the engine failed on one of these encodings.
            Unavailable: the model was stopped.
        """
        lengths = self.lengths_of(encodings)
        self.check(work_of(lengths), terms)
        return await self.serve(list(encodings), identities_of(encodings), terms)

    async def serve(self, encodings: list[Encoding], identities: list[bytes], terms: Terms) -> Forwarded:
        """Score all encodings of a request that was let in. The lists are the batcher's from then on: it empties them.

        Raises:
            DeadlineExceeded, ScoringFailed, Unavailable: see `forward`.
        """
        if self._closed:
            raise _gone(self._model)
        number = next(self._numbers)
        now = self._clock()
        if not self._coalesce:
            identities = [b"%d/%d" % (number, position) for position in range(len(encodings))]
        job = _Job(encodings, identities, terms, now=now)
        self._jobs[number] = job
        try:
            await self._enter(number, job, terms)
            async with asyncio.timeout(max(0.0, terms.deadline - now) if terms.deadline < inf else None):
                await job.answer
        except TimeoutError:
            self._observer.deadline_missed(model=self._model)
            if not terms.partial:
                raise _too_late(job, terms) from None
        finally:
            self._withdraw(number, job)
        return job.result()

    def lengths_of(self, encodings: Sequence[Encoding]) -> list[int]:
        """In tokens, as the engine computes them."""
        return [self._limits.rounded_length(len(encoding.ids)) for encoding in encodings]

    async def run(self) -> None:
        """Serve until cancelled; all who still wait then are told that the model is gone."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._worker.threads):
                    workers.create_task(self._work())
        finally:
            self._closed = True
            for job in self._jobs.values():
                _fail(job, _gone(self._model))

    def check(self, work: Work, terms: Terms, *, let_in: Work | None = None) -> None:
        """Let a request in, or refuse it; `let_in` is what one that is asked about again was let in for.

        Raises:
            Overloaded, DeadlineExceeded, Unavailable: see `place`.
        """
        if self._closed:
            raise _gone(self._model)
        now = self._clock()
        busy_s = sum(one.left_s(now) for one in self._passes) / self._worker.threads
        try:
            self.admission.check(work, terms, now=now, busy_s=busy_s, let_in=let_in)
        except (Overloaded, DeadlineExceeded) as refusal:
            self._observer.request_shed(model=self._model, reason=refusal.code)
            raise

    async def _enter(self, number: int, job: _Job, terms: Terms) -> None:
        """Queue a request's encodings; those of a large one in portions, so that the event loop is not held up."""
        async for some in in_portions(len(job.encodings)):
            waiting = self._joined(number, job, range(some.start, some.stop))
            if waiting:
                self._planner.add(waiting, terms)
                self._queue_changed()
                self._work_waits.set()

    def _joined(self, number: int, job: _Job, positions: range) -> list[Entry]:
        """Attach a portion to the passes that run for equal encodings, and return what is left to wait."""
        waiting = []
        for position in positions:
            identity = job.identities[position]
            entry = Entry(number, position, self._limits.rounded_length(len(job.encodings[position].ids)))
            if identity in self._running:
                self._running[identity].wanted_by.append(entry)
                job.compute(len(job.encodings[position].ids))
            else:
                self._waiting.setdefault(identity, []).append(entry)
                waiting.append(entry)
        if len(waiting) < len(positions):
            self._observer.pairs_coalesced(model=self._model, pairs=len(positions) - len(waiting))
            job.started = job.started or job.submitted
        return waiting

    def _withdraw(self, number: int, job: _Job) -> None:
        """Drop at once what still waits of a request; the rest of its traces go in a task of their own, since there may
        be thousands of them and whoever waited for the answer shall not wait for that.
        """
        job.answer.cancel()
        saved = self._planner.withdraw(number)
        if saved:
            self._observer.work_cancelled(model=self._model, tokens=saved)
            self._queue_changed()
        clearing = asyncio.create_task(self._clear(number, job))
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)

    async def _clear(self, number: int, job: _Job) -> None:
        unscored = np.flatnonzero(~job.scored).tolist()
        async for some in in_portions(len(unscored)):
            for position in unscored[some]:
                self._forget(job.identities[position], number)
        del self._jobs[number]
        await let_go(job.encodings)
        await let_go(job.identities)

    def _forget(self, identity: bytes, number: int) -> None:
        """Nobody of this request wants this encoding's logits any more."""
        if identity in self._running:
            wanted_by = self._running[identity].wanted_by
            wanted_by[:] = [entry for entry in wanted_by if entry.job != number]
        elif identity in self._waiting:
            remaining = [entry for entry in self._waiting[identity] if entry.job != number]
            if remaining:
                self._waiting[identity] = remaining
            else:
                del self._waiting[identity]

    async def _next_batch(self) -> list[_Item]:
        while not self._planner:
            self._work_waits.clear()
            await self._work_waits.wait()
        now = self._clock()
        batch = self._planner.next_batch(now=now, seconds_per_token=self.admission.seconds_per_token)
        items = [self._send(entry, now=now) for entry in batch if not self._is_sent(entry)]
        self._queue_changed()
        return items

    def _is_sent(self, entry: Entry) -> bool:
        return self._jobs[entry.job].identities[entry.position] in self._running

    def _send(self, entry: Entry, *, now: float) -> _Item:
        """Take an encoding, and everybody who waits for an equal one, out of the queue."""
        job = self._jobs[entry.job]
        job.started = job.started or now
        identity = job.identities[entry.position]
        item = _Item(identity, job.encodings[entry.position], self._waiting.pop(identity))
        for other in item.wanted_by:
            self._jobs[other.job].compute(len(item.encoding.ids))
            if other != entry:
                self._planner.remove(other)
        if len(item.wanted_by) > 1:
            self._observer.pairs_coalesced(model=self._model, pairs=len(item.wanted_by) - 1)
        self._running[identity] = item
        return item

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
                batch, running = await self._next_batch(), _Pass()
                task = scoring.create_task(self._score(batch, running, tries=2))
                if before is not None:
                    await before
                await self._nearly_over(task, running)
                before = task

    async def _nearly_over(self, scoring: asyncio.Task[None], running: _Pass) -> None:
        """Wait until a batch is scored, or should be in a moment."""
        await asyncio.sleep(0)  # it is handed over
        if not self._cost.known:
            await asyncio.wait({scoring})
            return
        left_s = running.left_s(self._clock()) - _HANDOVER_S - _HANDOVER_SHARE * running.expected_s
        if left_s > 0:
            await asyncio.wait({scoring}, timeout=left_s)

    async def _score(self, batch: Sequence[_Item], running: _Pass, *, tries: int) -> None:
        """Score a batch; if it fails, its halves, down to the one encoding that the engine cannot take. Each encoding
        has `tries`, so that one which was alone when a worker died is not taken for the cause.
        """
        batch = [item for item in batch if self._is_awaited(item)]
        if not batch:
            return
        try:
            logits = await self._forward(batch, running)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises; it is logged, and isolated
            self._log_failure(error, pairs=len(batch))
            self._observer.batch_failed(model=self._model, pairs=len(batch))
            if isinstance(error, OutOfMemory) and len(batch) > 1:
                self._learn_budget(batch)
            await self._isolate_failure(batch, tries=0 if isinstance(error, FinalFailure) else tries - 1)
        else:
            self._deliver(batch, logits, seconds=running.seconds)

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

    async def _forward(self, batch: Sequence[_Item], running: _Pass) -> FloatArray:
        encodings = [item.encoding for item in batch]
        lengths = self.lengths_of(encodings)
        tokens, squares = sum(lengths), sum(length * length for length in lengths)
        running.expected_s = self._cost.seconds(tokens=tokens, squares=squares)
        self._passes.add(running)
        try:
            async with asyncio.timeout(self._patience_s(running)):
                logits = await self._worker.run(running.run, self._engine.run, encodings, self._clock)
        except TimeoutError:
            self._worker.give_up()
            self._observer.thread_given_up(model=self._model)
            raise TimeoutError(f"the engine did not come back within {self._patience_s(running):.0f} s") from None
        finally:
            self._passes.remove(running)
        self._ended_at = self._clock()
        if logits.ndim != 2 or len(logits) != len(batch):
            raise ValueError(f"the engine gave logits of shape {logits.shape} for {len(batch)} encodings")
        if any(not self._jobs[entry.job].urgent for item in batch for entry in item.wanted_by):
            self._cost.learn(tokens=tokens, squares=squares, seconds=running.seconds)
        return logits

    def _patience_s(self, running: _Pass) -> float:
        """How long a pass may take."""
        if not self._cost.known:
            return _FIRST_PASSES_FACTOR * self._stuck_after_s
        return max(self._stuck_after_s, self._ordinary_s(running))

    def _ordinary_s(self, running: _Pass) -> float:
        """How long a pass may take before it is odd."""
        return _STUCK_FACTOR * running.expected_s if self._cost.known else self._stuck_after_s

    def _learn_budget(self, batch: Sequence[_Item]) -> None:
        """Cut batches of half this one's area for some time."""
        self._planner.batch_did_not_fit(area=self._area(batch))
        logger.warning(
            "out of memory: batches have at most %d tokens for some time",
            self._planner.max_batch_tokens,
            extra={"model": self._model},
        )

    async def _isolate_failure(self, batch: Sequence[_Item], *, tries: int) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._score(batch[:middle], _Pass(), tries=tries)
            await self._score(batch[middle:], _Pass(), tries=tries)
            return
        if tries > 0:
            await self._score(batch, _Pass(), tries=tries)
            return
        failure = ScoringFailed("the model failed on one of the documents; the server's log has the cause")
        for entry in self._running.pop(batch[0].identity).wanted_by:
            _fail(self._jobs[entry.job], failure)

    def _area(self, batch: Sequence[_Item]) -> int:
        """The tokens that the engine computes for a batch, padding included."""
        return self._limits.area([len(item.encoding.ids) for item in batch])

    def _is_awaited(self, item: _Item) -> bool:
        """Whether anybody still wants it; if not, it is let go."""
        if any(not self._jobs[entry.job].answer.done() for entry in item.wanted_by):
            return True
        self._running.pop(item.identity, None)
        return False

    def _deliver(self, batch: Sequence[_Item], logits: FloatArray, *, seconds: float) -> None:
        now = self._clock()
        self._planner.batch_fitted()
        for item, row in zip(batch, logits, strict=True):
            for entry in self._running.pop(item.identity).wanted_by:
                job = self._jobs[entry.job]
                if not job.answer.done():
                    job.receive(entry.position, row, now=now)
        self._observer.batch_scored(
            model=self._model,
            pairs=len(batch),
            tokens=sum(len(item.encoding.ids) for item in batch),
            padded_tokens=self._area(batch),
            seconds=seconds,
        )


def work_of(lengths: Sequence[int]) -> Work:
    """What encodings of these lengths cost an engine."""
    return Work(sum(lengths), sum(length * length for length in lengths))


def _fail(job: _Job, failure: RerankError) -> None:
    if not job.answer.done():
        job.answer.set_exception(failure)


def _too_late(job: _Job, terms: Terms) -> DeadlineExceeded:
    if not terms.divisible:
        return DeadlineExceeded("the deadline came before there was an order: allow more time, or send fewer documents")
    return DeadlineExceeded(
        f"the deadline came when {job.open} of {len(job.encodings)} texts were not scored yet: allow more time, send "
        "fewer documents, or ask for what is there with on_deadline = partial"
    )


def _gone(model: str) -> Unavailable:
    return Unavailable(f"model {model!r} is being stopped")
