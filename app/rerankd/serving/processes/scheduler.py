"""The scheduler's side: it owns the engines and their batchers, and serves the work of all front ends.

A front end leases an engine. Front ends that ask for the same model share one: its batcher's queue holds the requests
of all of them, and so one admission, one fairness between keys and one pass. What a front end held is released when
it hangs up or dies.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from math import inf
from typing import Any, Final

import numpy as np

from rerankd.batching.batcher import Batcher, BatcherReservation
from rerankd.concurrency.channel import Channel, Head, Reply, described
from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.domain.terms import Unmetered
from rerankd.engines import release_memory
from rerankd.errors import RerankError, Unavailable
from rerankd.scorers.base import ReadsImages
from rerankd.serving.assembly import EngineSource, LocalEngines, Opened
from rerankd.serving.model_files import file_marks
from rerankd.serving.processes.terms import read_items, read_terms, read_work, told_outcome
from rerankd.telemetry.observer import Observer

_STATE_EVERY_S: Final = 1.0


class _Counted(Unmetered):
    """Counts tokens that went to the engine, for the front end that asked."""

    def __init__(self) -> None:
        self._computed = 0

    def compute(self, tokens: int) -> None:
        self._computed += tokens

    def take(self) -> int:
        """What was counted since the last time."""
        computed, self._computed = self._computed, 0
        return computed


class _Engine:
    """One model that is loaded, for all front ends that lease it; it is released after the last of them. `unused` is
    called then, or when it could not be loaded.
    """

    def __init__(
        self, model: str, opening: AbstractAsyncContextManager[Opened], unused: Callable[["_Engine"], None]
    ) -> None:
        self.model = model
        self.leases = 0
        self.opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._unused = unused
        self._ended = asyncio.Event()
        self.task = asyncio.create_task(self._run(opening), name=f"engine {model}")

    def release(self) -> None:
        self.leases -= 1
        if not self.leases:
            self._unused(self)
            self._ended.set()

    async def _run(self, opening: AbstractAsyncContextManager[Opened]) -> None:
        try:
            async with opening as opened:
                self.opened.set_result(opened)
                await self._ended.wait()
        except Exception as error:
            if self.opened.done():
                raise
            # Those that wait for it are told.
            self.opened.set_exception(error)
            self.opened.exception()
            self._unused(self)


@dataclass(slots=True)
class _Ticket:
    """An admitted request of a front end."""

    reservation: BatcherReservation[Any, Any]
    meter: _Counted
    refusal: RerankError | None = None


@dataclass(slots=True)
class _Lease:
    """A front end's use of an engine."""

    engine: _Engine
    batcher: Batcher[Any, Any]
    opened: Opened
    tickets: dict[int, _Ticket] = field(default_factory=dict)


class Scheduler:
    """Loads models once for all front ends."""

    def __init__(self, settings: Settings, observer: Observer, engines: EngineSource) -> None:
        self._settings = settings
        self._observer = observer
        self._engines = engines
        # Those that can be leased, and all that run.
        self._loaded: dict[Hashable, _Engine] = {}
        self._running: set[_Engine] = set()
        # Counted up to load a model again whose files are the same.
        self._loads: Counter[str] = Counter()
        self._fronts: set[FrontSession] = set()
        self._leases = count()

    @classmethod
    @asynccontextmanager
    async def running(cls, settings: Settings, observer: Observer) -> AsyncIterator["Scheduler"]:
        """A scheduler that loads models into this process; leaving the context releases all of them."""
        with LocalEngines.running(settings, observer) as engines:
            async with cls.over(engines, settings, observer) as scheduler:
                yield scheduler

    @classmethod
    @asynccontextmanager
    async def over(cls, engines: EngineSource, settings: Settings, observer: Observer) -> AsyncIterator["Scheduler"]:
        """The same with engines of the caller's."""
        scheduler = cls(settings, observer, engines)
        telling = asyncio.create_task(scheduler._tell_state(), name="state")
        try:
            yield scheduler
        finally:
            telling.cancel()
            for session in [*scheduler._fronts]:
                session.end()
            running = [engine.task for engine in scheduler._running]
            await asyncio.gather(telling, *running, return_exceptions=True)

    def attend(self, channel: Channel) -> "FrontSession":
        """Answer a front end's calls from now on."""
        session = FrontSession(self, channel)
        self._fronts.add(session)
        return session

    def leave(self, session: "FrontSession") -> None:
        self._fronts.discard(session)

    def load_again(self, name: str) -> None:
        """The next lease of this model loads it from its files, whatever is loaded."""
        self._loads[name] += 1

    async def lease(self, spec: ModelSpec, *, wanted: bool) -> tuple[int, _Lease]:
        """Use a model's engine, once it is loaded.

        Raises:
            ConfigError, SourceUnreachable: see `EngineSource.open`.
        """
        marks = await asyncio.to_thread(file_marks, spec, self._settings)
        place = (spec.model_dump_json(), marks, self._loads[spec.name])
        engine = self._loaded.get(place)
        if engine is None:
            opening = self._engines.open(spec, wanted=wanted)
            engine = self._loaded[place] = _Engine(spec.name, opening, lambda unused: self._forget(place, unused))
            self._running.add(engine)
            engine.task.add_done_callback(partial(self._ended, engine))
        engine.leases += 1
        try:
            opened = await asyncio.shield(engine.opened)
        except BaseException:
            engine.release()
            raise
        assert isinstance(opened.intake, Batcher)  # noqa: S101 - that is what runs in this process
        return next(self._leases), _Lease(engine, opened.intake, opened)

    def _forget(self, place: Hashable, unused: _Engine) -> None:
        """The next lease loads the model again."""
        if self._loaded.get(place) is unused:
            del self._loaded[place]

    def _ended(self, engine: _Engine, _: asyncio.Task[None]) -> None:
        self._running.discard(engine)
        if not any(engine.model == other.model for other in self._running):
            self._observer.model_removed(model=engine.model)
        asyncio.get_running_loop().run_in_executor(None, release_memory)

    async def _tell_state(self) -> None:
        while True:
            await asyncio.sleep(_STATE_EVERY_S)
            for session in self._fronts:
                session.tell_state()


class FrontSession:
    """What one front end has here."""

    def __init__(self, scheduler: Scheduler, channel: Channel) -> None:
        self._scheduler = scheduler
        self._channel = channel
        self._leases: dict[int, _Lease] = {}
        channel.calls |= {"open": self._open, "reserve": self._reserve, "fits": self._fits, "run": self._run}
        channel.notices |= {
            "close": self._close,
            "check_again": self._check_again,
            "take_back": self._take_back,
            "release": self._release,
        }

    def end(self) -> None:
        """The front end is gone: release all that it had. The channel has cancelled its calls."""
        self._scheduler.leave(self)
        for number in [*self._leases]:
            self._close({"lease": number})

    def tell_state(self) -> None:
        """When engines were last seen to work, and what is wrong with remote ones."""
        engines = []
        for number, lease in self._leases.items():
            seen_at = lease.batcher.alive_at()
            engines.append([number, None if seen_at == -inf else seen_at, lease.opened.trouble()])
        if engines:
            self._channel.tell("state", {"engines": engines})

    async def _open(self, told: Head, _: bytes) -> Reply:
        number, lease = await self._scheduler.lease(ModelSpec.model_validate(told["spec"]), wanted=told["wanted"])
        self._leases[number] = lease
        if self._channel.is_lost:
            self.end()
        read = lease.opened.read
        rounded = np.array(lease.batcher.rounded(read.scorer.max_length), dtype=np.int64)
        is_plain = bool((rounded == np.arange(len(rounded))).all())
        answer = {
            "lease": number,
            "spec": read.spec.model_dump(mode="json"),
            "folder": str(read.folder),
            "fingerprint": read.fingerprint,
            "independent": read.independent,
            "certificate": None if read.certificate is None else asdict(read.certificate),
            "engine_name": read.engine_name,
            "remark": read.remark,
            "asked": not read.canary.pairs,
        }
        return answer, b"" if is_plain else rounded.tobytes()

    def _close(self, told: Head) -> None:
        if lease := self._leases.pop(told["lease"], None):
            for ticket in lease.tickets.values():
                ticket.reservation.hold(0)
            lease.engine.release()

    def _reserve(self, told: Head, _: bytes) -> Reply:
        lease, meter, work = self._lease(told), _Counted(), read_work(told["work"])
        terms = read_terms(told["terms"], meter)
        reservation = lease.batcher.reserve(work, terms)
        if not terms.background:
            reservation.hold(work.tokens)
        lease.tickets[told["ticket"]] = _Ticket(reservation, meter)
        return {}, b""

    def _fits(self, told: Head, _: bytes) -> Reply:
        terms = read_terms(told["terms"], _Counted())
        return {"fits": self._lease(told).batcher.fits_work(read_work(told["work"]), terms)}, b""

    def _check_again(self, told: Head) -> None:
        if ticket := self._ticket(told):
            work = read_work(told["work"])
            try:
                ticket.reservation.check_again(work, read_work(told["admitted"]))
            except RerankError as refusal:
                ticket.refusal = refusal
            else:
                ticket.reservation.hold(work.tokens)

    def _take_back(self, told: Head) -> None:
        if ticket := self._ticket(told):
            ticket.reservation.hold(0)
            ticket.reservation.take_back(told["tokens"])

    def _release(self, told: Head) -> None:
        if ticket := self._ticket(told):
            ticket.reservation.hold(0)
            del self._leases[told["lease"]].tickets[told["ticket"]]

    def _run(self, told: Head, body: bytes) -> Awaitable[Reply]:
        lease = self._lease(told)
        ticket = lease.tickets[told["ticket"]]
        scorer = lease.opened.read.scorer
        items = read_items(told, body, scorer.patches if isinstance(scorer, ReadsImages) else None)
        return self._serve(ticket, items)

    async def _serve(self, ticket: _Ticket, items: list[Any]) -> Reply:
        if ticket.refusal is not None:
            raise ticket.refusal
        ticket.reservation.hold(0)
        try:
            head, body = told_outcome(await ticket.reservation.serve(items))
        except asyncio.CancelledError:
            # Its front end is told what it cost.
            return {"computed": ticket.meter.take(), "failure": described(Unavailable("cancelled"))}, b""
        except RerankError as failure:
            return {"computed": ticket.meter.take(), "failure": described(failure)}, b""
        return {**head, "computed": ticket.meter.take()}, body

    def _lease(self, told: Head) -> _Lease:
        try:
            return self._leases[told["lease"]]
        except KeyError:
            raise Unavailable("the model was released: send the request again") from None

    def _ticket(self, told: Head) -> _Ticket | None:
        lease = self._leases.get(told["lease"])
        return lease.tickets.get(told["ticket"]) if lease else None
