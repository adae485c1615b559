"""The asynchronous shell around the planner: futures, the worker's threads, and failures that stay where they arose.

Never waits while a worker is idle, and never holds a batch back: while all workers are busy, what arrives gathers in
the planner. There is no timer.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import numpy as np

from app.batching.planner import BatchPlanner, Entry
from app.domain import Encoding, FloatArray
from app.engines.base import Engine
from app.errors import Overloaded, ScoringFailed, Unavailable
from app.observer import Observer
from app.worker import Worker

logger = logging.getLogger(__name__)

_SPEED_MEMORY = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """`logits` has shape [encodings, outputs], in the order of the encodings. Times are wall seconds: until the
    first of them went to the engine, and from then to the last one's answer.
    """

    logits: FloatArray
    queue_s: float
    inference_s: float


class _Job:
    """A request's encodings, and its answer once all of them are scored."""

    def __init__(self, encodings: Sequence[Encoding], *, now: float) -> None:
        self.encodings = encodings
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.logits: FloatArray | None = None
        self.open = len(encodings)
        self.submitted = now
        self.started: float | None = None
        self.finished = now

    def receive(self, index: int, logits: FloatArray, *, now: float) -> None:
        if self.logits is None:
            self.logits = np.empty((len(self.encodings), len(logits)), dtype=np.float32)
        self.logits[index] = logits
        self.open -= 1
        if not self.open:
            self.finished = now
            self.answer.set_result(None)

    def result(self) -> Forwarded:
        assert self.logits is not None and self.started is not None  # noqa: S101, PT018 - both were set with the answer
        return Forwarded(
            logits=self.logits,
            queue_s=self.started - self.submitted,
            inference_s=self.finished - self.started,
        )


class Batcher:
    """Mixes the encodings of many requests into forward passes of one engine."""

    def __init__(
        self, planner: BatchPlanner, engine: Engine, worker: Worker, *, model: str, observer: Observer
    ) -> None:
        self._planner = planner
        self._engine = engine
        self._worker = worker
        self._model = model
        self._observer = observer
        self._jobs: dict[int, _Job] = {}
        self._numbers = count()
        self._work_waits = asyncio.Event()
        self._idle_workers = asyncio.Semaphore(worker.threads)
        self._tokens_per_s = 0.0
        self._closed = False

    async def forward(self, encodings: Sequence[Encoding], *, urgent: bool = False) -> Forwarded:
        """Score all encodings. If the caller is cancelled, those that still wait are dropped.

        Raises:
            Overloaded: too much waits; `retry_after_s` says when that should be worked off.
            ScoringFailed: the engine failed on one of these encodings.
            Unavailable: the model was stopped.
        """
        if self._closed:
            raise _gone(self._model)
        number = next(self._numbers)
        job = _Job(encodings, now=perf_counter())
        self._admit(number, job, urgent=urgent)
        try:
            await job.answer
        finally:
            del self._jobs[number]
            self._withdraw(number)
        return job.result()

    async def run(self) -> None:
        """Serve until cancelled; all who still wait then are told that the model is gone."""
        try:
            async with asyncio.TaskGroup() as passes:
                while True:
                    await self._idle_workers.acquire()
                    batch = await self._next_batch()
                    passes.create_task(self._serve(batch))
        finally:
            self._closed = True
            for job in self._jobs.values():
                if not job.answer.done():
                    job.answer.set_exception(_gone(self._model))

    def _admit(self, number: int, job: _Job, *, urgent: bool) -> None:
        try:
            self._planner.admit(number, [len(encoding.ids) for encoding in job.encodings], urgent=urgent)
        except Overloaded as refusal:
            self._observer.request_shed(model=self._model, reason=refusal.code)
            waiting_s = self._planner.waiting_tokens / self._tokens_per_s if self._tokens_per_s else 1.0
            raise Overloaded(refusal.message, retry_after_s=waiting_s) from None
        self._jobs[number] = job
        self._observer.queue_changed(model=self._model, waiting_tokens=self._planner.waiting_tokens)
        self._work_waits.set()

    def _withdraw(self, number: int) -> None:
        saved = self._planner.withdraw(number)
        if saved:
            self._observer.work_cancelled(model=self._model, tokens=saved)
            self._observer.queue_changed(model=self._model, waiting_tokens=self._planner.waiting_tokens)

    async def _next_batch(self) -> list[Entry]:
        while not self._planner:
            self._work_waits.clear()
            await self._work_waits.wait()
        batch = self._planner.next_batch()
        now = perf_counter()
        for entry in batch:
            job = self._jobs[entry.job]
            job.started = job.started or now
        self._observer.queue_changed(model=self._model, waiting_tokens=self._planner.waiting_tokens)
        return batch

    async def _serve(self, batch: Sequence[Entry]) -> None:
        try:
            await self._score(batch)
        finally:
            self._idle_workers.release()

    async def _score(self, batch: Sequence[Entry]) -> None:
        """Score a batch; if it fails, its halves, down to the one encoding that the engine cannot take."""
        batch = [entry for entry in batch if self._is_awaited(entry)]
        if not batch:
            return
        started = perf_counter()
        try:
            logits = await self._forward(batch)
        except Exception:
            logger.exception("batch of %d pairs failed", len(batch), extra={"model": self._model})
            self._observer.batch_failed(model=self._model, pairs=len(batch))
            await self._isolate_failure(batch)
        else:
            self._deliver(batch, logits)
            self._learn_speed(sum(entry.length for entry in batch), perf_counter() - started)

    async def _forward(self, batch: Sequence[Entry]) -> FloatArray:
        encodings = [self._jobs[entry.job].encodings[entry.position] for entry in batch]
        logits = await self._worker.run(self._engine.forward, encodings)
        if logits.ndim != 2 or len(logits) != len(batch):
            raise ValueError(f"the engine gave logits of shape {logits.shape} for {len(batch)} encodings")
        return logits

    async def _isolate_failure(self, batch: Sequence[Entry]) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._score(batch[:middle])
            await self._score(batch[middle:])
            return
        if self._is_awaited(batch[0]):
            failure = ScoringFailed("the model failed on one of the documents; the server's log has the cause")
            self._jobs[batch[0].job].answer.set_exception(failure)

    def _is_awaited(self, entry: Entry) -> bool:
        job = self._jobs.get(entry.job)
        return job is not None and not job.answer.done()

    def _deliver(self, batch: Sequence[Entry], logits: FloatArray) -> None:
        now = perf_counter()
        for entry, row in zip(batch, logits, strict=True):
            if self._is_awaited(entry):
                self._jobs[entry.job].receive(entry.position, row, now=now)
        self._observer.batch_scored(
            model=self._model,
            pairs=len(batch),
            tokens=sum(entry.length for entry in batch),
            padded_tokens=len(batch) * max(entry.length for entry in batch),
        )

    def _learn_speed(self, tokens: int, seconds: float) -> None:
        speed = tokens / seconds * self._worker.threads
        memory = _SPEED_MEMORY if self._tokens_per_s else 0.0
        self._tokens_per_s = memory * self._tokens_per_s + (1 - memory) * speed


def _gone(model: str) -> Unavailable:
    return Unavailable(f"model {model!r} is being stopped")
