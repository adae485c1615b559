"""Runs the batching decisions against an engine of known speed in virtual time, so that claims about latency, fairness
and deadlines are tested exactly, whatever the machine is doing.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf, pi, sin

from rerankd.batching.admission import Admission
from rerankd.batching.cost import CostModel
from rerankd.batching.planner import BatchPlanner, Entry
from rerankd.batching.work import Work
from rerankd.domain import Terms
from rerankd.errors import RerankError

OVERHEAD_S = 0.002
SECONDS_PER_TOKEN = 4e-5
SECONDS_PER_SQUARE = 2e-8

_ORDINARY = Terms()


@dataclass(slots=True)
class Request:
    """What one request asked for and got; `finished` is inf where it was refused or missed its deadline. `done` is
    called when it ends, whichever way.
    """

    arrived: float
    lengths: Sequence[int]
    terms: Terms
    done: Callable[[], None]
    open: int
    refusal: RerankError | None = None
    finished: float = inf

    @property
    def latency_s(self) -> float:
        return self.finished - self.arrived


def pass_s(lengths: Sequence[int]) -> float:
    """What a forward pass takes on this engine: about 200 pairs a second and worker."""
    return OVERHEAD_S + SECONDS_PER_TOKEN * sum(lengths) + SECONDS_PER_SQUARE * sum(n * n for n in lengths)


def lengths_of(rng: random.Random, documents: int) -> list[int]:
    """Tokens of this many usual pairs."""
    return [rng.randrange(50, 235) for _ in range(documents)]


@dataclass(frozen=True, slots=True)
class Stalls:
    """A machine that is shared: `every_s`, for `length_s`, passes that begin take `factor` times as long."""

    every_s: float
    length_s: float
    factor: float

    def slows(self, moment: float) -> float:
        return self.factor if moment % self.every_s > self.every_s - self.length_s else 1.0


@dataclass(frozen=True, slots=True)
class Drift:
    """A machine that becomes twice as fast and half as fast, and back, every `every_s`."""

    every_s: float

    def slows(self, moment: float) -> float:
        return 2 ** sin(2 * pi * moment / self.every_s)


class Simulation:
    """Batches of 512 tokens; passes take what they should, give or take `noise`, and longer in `stalls`."""

    def __init__(
        self,
        *,
        workers: int = 2,
        noise: float = 0.1,
        seed: int = 0,
        stalls: Stalls | Drift | None = None,
        speed: float = 1.0,
        max_waiting_tokens: int = 10**9,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.requests: list[Request] = []
        self._workers, self._noise, self._stalls, self._speed = workers, noise, stalls, speed
        self._planner = BatchPlanner(max_batch_tokens=512, max_batch_pairs=64, workers=workers)
        self._cost = CostModel()
        self._admission = Admission(self._planner, self._cost, max_waiting_tokens=max_waiting_tokens, workers=workers)
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._open: dict[int, Request] = {}
        # When each pass that runs should end.
        self._ends: dict[int, float] = {}
        for _ in range(40):
            self._learn(lengths_of(self.rng, 4))

    def later(self, moment: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), call))

    def run(self, *, until: float = inf) -> None:
        """Let time pass until nothing is left to happen, or the given moment has come."""
        while self._events and self._events[0][0] <= until:
            self.now, _, call = heapq.heappop(self._events)
            call()

    def go_to(self, moment: float) -> None:
        """Let time pass until the given moment, whether anything happens then or not."""
        self.run(until=moment)
        self.now = moment

    def slow_down(self, factor: float) -> None:
        """Passes that begin from now on take this many times as long."""
        self._speed /= factor

    def submit(
        self,
        lengths: Sequence[int],
        terms: Terms = _ORDINARY,
        done: Callable[[], None] = lambda: None,
        *,
        patience_s: float = inf,
    ) -> Request:
        """A request arrives now, whose client goes away after `patience_s`."""
        request = Request(self.now, lengths, terms, done, open=len(lengths))
        self.requests.append(request)
        work = Work(sum(lengths), sum(length * length for length in lengths))
        busy_s = sum(max(0.0, end - self.now) for end in self._ends.values()) / self._workers
        try:
            self._admission.check(work, terms, now=self.now, busy_s=busy_s)
        except RerankError as refusal:
            request.refusal = refusal
            self.later(self.now, done)
            return request
        number = next(self._numbers)
        self._open[number] = request
        self._planner.add([Entry(number, position, length) for position, length in enumerate(lengths)], terms)
        ends = min(terms.deadline, self.now + patience_s)
        if ends < inf:
            self.later(ends, partial(self._give_up, number))
        self._start()
        return request

    def _give_up(self, number: int) -> None:
        request = self._open.pop(number, None)
        if request:
            self._planner.withdraw(number)
            request.done()

    def _start(self) -> None:
        """Give every idle worker a batch."""
        while len(self._ends) < self._workers and self._planner:
            batch = self._planner.next_batch(now=self.now, seconds_per_token=self._admission.seconds_per_token)
            number = next(self._numbers)
            lengths = [entry.length for entry in batch]
            squares = sum(length * length for length in lengths)
            self._ends[number] = self.now + self._cost.seconds(tokens=sum(lengths), squares=squares)
            self.later(self.now + self._learn(lengths), partial(self._finish, number, batch))

    def _finish(self, number: int, batch: Sequence[Entry]) -> None:
        del self._ends[number]
        for entry in batch:
            request = self._open.get(entry.job)
            if request:
                request.open -= 1
                if not request.open:
                    request.finished = self.now
                    del self._open[entry.job]
                    request.done()
        self._start()

    def _learn(self, lengths: Sequence[int]) -> float:
        seconds = pass_s(lengths) / self._speed * (1 + self._noise * (self.rng.random() - 0.5))
        if self._stalls:
            seconds *= self._stalls.slows(self.now)
        squares = sum(length * length for length in lengths)
        self._cost.learn(tokens=sum(lengths), squares=squares, seconds=seconds)
        return seconds


def closed_loop(simulation: Simulation, *, documents: int, terms: Terms = _ORDINARY, clients: int = 1) -> None:
    """Clients that each send their next request when the last one has ended."""

    def ask() -> None:
        simulation.submit(lengths_of(simulation.rng, documents), terms, ask)

    for _ in range(clients):
        simulation.later(simulation.now, ask)


def open_loop(
    simulation: Simulation,
    *,
    requests_per_s: float,
    documents: Sequence[int],
    until: float,
    deadline_s: float = inf,
    caller: str = "",
) -> None:
    """Poisson arrivals of one caller's requests of various sizes, each with a deadline."""

    def arrive() -> None:
        lengths = lengths_of(simulation.rng, simulation.rng.choice(documents))
        simulation.submit(lengths, Terms(caller=caller, deadline=simulation.now + deadline_s))
        pause_s = simulation.rng.expovariate(requests_per_s)
        if simulation.now + pause_s < until:
            simulation.later(simulation.now + pause_s, arrive)

    simulation.later(simulation.now, arrive)
