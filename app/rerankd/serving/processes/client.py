"""A front end's side of the scheduler: models whose engines are there, and the intake of their work.

What needs no other request stays here: how long texts are expected to be, quotas, tokenizing. What compares requests
(admission, order, deadlines) is asked of the scheduler, whose queue holds those of all front ends.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from rerankd.batching.admission import Estimate, TextLengths
from rerankd.batching.ticket import Outcome, Ticket
from rerankd.batching.work import Work, WorkItem
from rerankd.concurrency.channel import Channel, Head, revived
from rerankd.concurrency.worker import Worker, release
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.domain import IntArray, Terms
from rerankd.serving.assembly import KnownEngine, Opened, Read, read_parts
from rerankd.serving.certifying import Certificate
from rerankd.serving.processes.terms import read_outcome, told_items, told_terms, told_work
from rerankd.telemetry.spans import Attributes, current_span


class RemoteIntake:
    """Where stages submit work that the scheduler's engine computes. `state` is what the scheduler told last."""

    def __init__(self, channel: Channel, lease: int, model: str, rounded: IntArray | None) -> None:
        """`rounded`: as how many tokens the engine computes each length; None: as that many."""
        self.lengths = TextLengths()
        self.seen_at = perf_counter()
        self.trouble = ""
        self._channel = channel
        self._lease = lease
        self._model = model
        self._rounded = rounded
        self._tickets = count()

    @asynccontextmanager
    async def admit(self, estimate: Estimate, terms: Terms) -> AsyncIterator[Ticket[Any, Any]]:
        """See `Intake.admit`."""
        forecast = self.lengths.forecast(estimate, caller=terms.caller)
        reservation = _RemoteReservation(self._channel, self._lease, next(self._tickets), self._model, terms)
        try:
            await reservation.open(forecast.work)
            yield Ticket(self.lengths, reservation, terms, forecast)
        finally:
            reservation.close()

    async def fits(self, estimate: Estimate, terms: Terms) -> bool:
        """See `Intake.fits`."""
        work = self.lengths.forecast(estimate, caller=terms.caller).work
        asked = {"lease": self._lease, "terms": told_terms(terms), "work": told_work(work)}
        answer, _ = await self._channel.call("fits", asked)
        return bool(answer["fits"])

    def lengths_of(self, items: Sequence[WorkItem[Any]]) -> list[int]:
        """See `Intake.lengths_of`."""
        if self._rounded is None:
            return [item.cost for item in items]
        known = len(self._rounded)
        return [int(self._rounded[item.cost]) if item.cost < known else item.cost for item in items]

    def alive_at(self) -> float:
        return self.seen_at


class _RemoteReservation:
    """What a request holds of the scheduler's queue, under its number there."""

    def __init__(self, channel: Channel, lease: int, ticket: int, model: str, terms: Terms) -> None:
        self._channel = channel
        self._terms = terms
        self._model = model
        self._place: Head = {"lease": lease, "ticket": ticket}

    async def open(self, work: Work) -> None:
        await self._channel.call("reserve", {**self._place, "terms": told_terms(self._terms), "work": told_work(work)})

    def close(self) -> None:
        self._channel.tell("release", self._place)

    def hold(self, tokens: int) -> None:
        """The scheduler holds what was admitted, until there are items or the request is over."""

    def check_again(self, work: Work, admitted: Work) -> None:
        """Ask, and go on tokenizing: a refusal comes out of `serve`."""
        asked = {**self._place, "work": told_work(work), "admitted": told_work(admitted)}
        self._channel.tell("check_again", asked)

    def take_back(self, tokens: int) -> None:
        self._channel.tell("take_back", {**self._place, "tokens": tokens})

    async def serve(self, items: list[WorkItem[Any]]) -> Outcome[Any]:
        told, body = told_items(items)
        answer, results = await self._channel.call("run", {**self._place, **told}, body, late=self._count)
        await release(items)
        self._count(answer)
        if "failure" in answer:
            raise revived(answer["failure"])
        outcome = read_outcome(answer, results)
        self._trace(outcome, items=told["count"])
        return outcome

    def _count(self, answer: Head) -> None:
        """What went to the engine is counted, even of a request that nobody waits for any more."""
        self._terms.meter.compute(answer.get("computed", 0))

    def _trace(self, outcome: Outcome[Any], *, items: int) -> None:
        if (origin := current_span()) is not None:
            told: Attributes = {"rerankd.model": self._model, "rerankd.items": items}
            origin.record("queue", told, ago_s=outcome.queue_s + outcome.inference_s, seconds=outcome.queue_s)
            origin.record("inference", told, ago_s=outcome.inference_s, seconds=outcome.inference_s)


class SchedulerEngines:
    """The engines that the scheduler has; see `EngineSource`. Scorers, with their tokenizers, load here."""

    def __init__(self, channel: Channel, settings: Settings, loading: Worker) -> None:
        self._channel = channel
        self._settings = settings
        self._loading = loading
        self._intakes: dict[int, RemoteIntake] = {}
        channel.notices["state"] = self._hear_state

    @classmethod
    @contextmanager
    def running(cls, channel: Channel, settings: Settings) -> Iterator["SchedulerEngines"]:
        with Worker(name="load", threads=1) as loading:
            yield cls(channel, settings, loading)

    @asynccontextmanager
    async def open(self, spec: ModelSpec, *, wanted: bool) -> AsyncIterator[Opened]:
        """Lease a model's engine; the scheduler loads it for the first front end that asks."""
        asked = {"spec": spec.model_dump(mode="json"), "wanted": wanted}
        told, rounded = await self._channel.call("open", asked, late=self._close)
        lease = told["lease"]
        try:
            read = await self._loading.run(_read, told, self._settings)
            intake = RemoteIntake(
                self._channel, lease, spec.name, np.frombuffer(rounded, dtype=np.int64) if rounded else None
            )
            self._intakes[lease] = intake
            yield Opened(read, intake, lambda: intake.trouble)
        finally:
            self._intakes.pop(lease, None)
            self._close(told)

    def _close(self, told: Head) -> None:
        """Give a lease back, if there is one."""
        if "lease" in told:
            self._channel.tell("close", {"lease": told["lease"]})

    def _hear_state(self, told: Head) -> None:
        """When each engine was last seen to work, and why its remote model does not answer now."""
        for lease, seen_at, trouble in told["engines"]:
            if lease in self._intakes:
                intake = self._intakes[lease]
                intake.seen_at, intake.trouble = -inf if seen_at is None else seen_at, trouble


def _read(told: Head, settings: Settings) -> Read:
    certificate = told["certificate"]
    known = KnownEngine(
        fingerprint=told["fingerprint"],
        independent=told["independent"],
        certificate=None if certificate is None else Certificate(**certificate),
        engine_name=told["engine_name"],
        remark=told["remark"],
    )
    spec = ModelSpec.model_validate(told["spec"])
    return read_parts(spec, Path(told["folder"]), settings, known, asked=told["asked"])
