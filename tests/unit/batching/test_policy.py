"""What the batching decisions promise, in virtual time: see `simulation`."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from math import inf

import numpy as np
import pytest

from rerankd.batching.planner import BatchPlanner, Entry
from rerankd.domain import Terms
from rerankd.errors import Overloaded
from tests.unit.batching.simulation import (
    Drift,
    Request,
    Simulation,
    Stalls,
    closed_loop,
    lengths_of,
    open_loop,
    pass_s,
)

# Simulations of minutes: coverage more than doubles their time.
pytestmark = pytest.mark.uncovered


def _quantile(requests: Sequence[Request], share: float) -> float:
    return float(np.quantile([request.latency_s for request in requests], share))


def _answered(simulation: Simulation, documents: int, caller: str = "") -> list[Request]:
    return [
        request
        for request in simulation.requests
        if len(request.lengths) == documents and request.terms.caller == caller and request.latency_s < float("inf")
    ]


def _alone(documents: int, share: float) -> float:
    simulation = Simulation(seed=1)
    closed_loop(simulation, documents=documents)
    simulation.run(until=60)
    return _quantile(_answered(simulation, documents), share)


def test_a_small_request_hardly_notices_large_ones() -> None:
    simulation = Simulation(seed=2)
    closed_loop(simulation, documents=1000, clients=3)
    closed_loop(simulation, documents=10)
    simulation.run(until=120)
    small, large = _answered(simulation, 10), _answered(simulation, 1000)
    assert len(large) > 10, "the large ones are served too"
    assert _quantile(small, 0.99) <= 3 * _alone(10, 0.99)


def test_a_light_caller_hardly_notices_a_heavy_one() -> None:
    simulation = Simulation(seed=3)
    closed_loop(simulation, documents=30, terms=Terms(caller="heavy"), clients=10)
    closed_loop(simulation, documents=30, terms=Terms(caller="light"))
    simulation.run(until=120)
    assert _quantile(_answered(simulation, 30, "light"), 0.95) <= 1.5 * _alone(30, 0.95)
    assert len(_answered(simulation, 30, "heavy")) > 0.1 * len(simulation.requests), "and the heavy one is served too"


def test_one_client_is_answered_as_fast_as_the_engine_allows() -> None:
    simulation = Simulation(seed=4)
    closed_loop(simulation, documents=30)
    simulation.run(until=60)
    answered = _answered(simulation, 30)
    # What two workers need for full batches of this engine's usual pairs.
    ideal = [sum(pass_s([length] * 4) / 4 for length in request.lengths) / 2 for request in answered]
    assert _quantile(answered, 0.5) <= 1.25 * float(np.median(ideal))


def test_every_client_waits_for_the_work_in_the_system_and_no_longer() -> None:
    simulation = Simulation(seed=5)
    closed_loop(simulation, documents=30, clients=8)
    simulation.run(until=60)
    answered = _answered(simulation, 30)
    throughput = sum(len(request.lengths) for request in answered) / 60
    assert _quantile(answered, 0.5) <= 1.15 * 8 * 30 / throughput


def test_requests_of_one_size_pad_each_other_little() -> None:
    planner, rng = BatchPlanner(max_batch_tokens=1024, max_batch_pairs=64, workers=2), random.Random(6)
    batches = []
    for number in range(100):
        planner.add([Entry(number, place, length) for place, length in enumerate(lengths_of(rng, 30))], Terms())
        while planner.waiting_tokens > 8 * 30 * 142:
            batches.append([entry.length for entry in planner.next_batch()])
    areas = [len(batch) * max(batch) for batch in batches]
    assert 1 - sum(map(sum, batches)) / sum(areas) <= 0.06


@pytest.mark.parametrize("documents", [[30], [10, 30, 100]])
@pytest.mark.parametrize("seed", range(3))
def test_requests_admitted_under_overload_are_answered_in_time(documents: list[int], seed: int) -> None:
    simulation = Simulation(seed=seed, noise=0.3)
    mean = sum(documents) / len(documents)
    pairs_per_s = 2 * 4 / pass_s([142] * 4)
    open_loop(simulation, requests_per_s=3 * pairs_per_s / mean, documents=documents, until=60, deadline_s=1.5)
    simulation.run()
    admitted = [request for request in simulation.requests if request.refusal is None]
    assert sum(request.latency_s < float("inf") for request in admitted) >= 0.99 * len(admitted)
    offered, taken = (sum(len(request.lengths) for request in group) for group in (simulation.requests, admitted))
    assert taken < 0.5 * offered
    assert taken / 60 > 0.85 * pairs_per_s, "refusing does not leave the engine idle"


def _callers(
    loads: Sequence[float], *, seed: int, documents: int = 30, deadlines_s: Sequence[float] = (2.0,)
) -> tuple[Simulation, float]:
    """Callers "0", "1", ... each with this many times the capacity, for 80 s, and what that is, in pairs a second."""
    simulation = Simulation(seed=seed, noise=0.35, speed=0.4)
    pairs_per_s = 2 * 4 / pass_s([142] * 4) * 0.4
    for caller, (load, deadline_s) in enumerate(zip(loads, cycle(deadlines_s))):
        open_loop(
            simulation,
            requests_per_s=load * pairs_per_s / documents,
            documents=[documents],
            until=80,
            deadline_s=deadline_s,
            caller=str(caller),
        )
    simulation.run()
    return simulation, pairs_per_s


_FOUR_EQUAL = [0.75] * 4
_ONE_BESIDE_TEN_TIMES_ITS_LOAD = [3 / 11, 30 / 11]
_TEN_UNEQUAL = [3 * weight / 55 for weight in range(1, 11)]


@pytest.mark.parametrize("loads", [_FOUR_EQUAL, _ONE_BESIDE_TEN_TIMES_ITS_LOAD, _TEN_UNEQUAL])
@pytest.mark.parametrize("seed", range(2))
def test_with_any_number_of_callers_admitted_requests_are_answered_in_time(loads: list[float], seed: int) -> None:
    simulation, pairs_per_s = _callers(loads, seed=seed)
    admitted = [request for request in simulation.requests if request.refusal is None]
    assert sum(request.latency_s < float("inf") for request in admitted) >= 0.99 * len(admitted)
    assert sum(len(request.lengths) for request in admitted) / 80 >= 0.93 * pairs_per_s


def test_a_light_caller_does_not_pay_for_what_was_promised_to_a_heavy_one() -> None:
    """The engine turns out to be a quarter as fast as when the heavy caller's 300 s of work were admitted. From the
    start none of its deadlines is safe.
    """

    def light_one(heavy_requests: int) -> list[Request]:
        simulation = Simulation(seed=9)
        for _ in range(heavy_requests):
            simulation.submit([400] * 1000, Terms(caller="heavy", deadline=200.0))
        simulation.slow_down(4)

        def ask() -> None:
            simulation.submit(
                lengths_of(simulation.rng, 30), Terms(caller="light", deadline=simulation.now + 300), rest
            )

        def rest() -> None:
            simulation.later(simulation.now + 0.1, ask)

        simulation.later(1.0, ask)
        simulation.run(until=60)
        return [request for request in simulation.requests if request.terms.caller == "light"]

    alone, beside = light_one(0), light_one(20)
    assert len(beside) > 30
    assert not any(request.refusal for request in beside)
    answered = [request for request in beside if request.latency_s < inf]
    assert len(answered) >= len(beside) - 1, "all but the one that is open when time is up"
    assert _quantile(answered, 0.95) <= 1.5 * _quantile(alone[:-1], 0.95)


def test_equal_callers_are_admitted_equally() -> None:
    simulation, _ = _callers(_FOUR_EQUAL, seed=8)
    admitted = Counter(request.terms.caller for request in simulation.requests if request.refusal is None)
    assert max(admitted.values()) <= 1.2 * min(admitted.values())


@pytest.mark.parametrize(
    ("loads", "documents", "seeds"),
    [
        pytest.param(_ONE_BESIDE_TEN_TIMES_ITS_LOAD, 30, 6, id="one beside ten times its load"),
        pytest.param([0.05, 2.95], 30, 3, id="one beside sixty times its load"),
        pytest.param([0.07, 1.4, 1.4], 30, 3, id="one beside two heavy ones"),
        pytest.param(_TEN_UNEQUAL, 10, 2, id="the lightest of ten"),
    ],
)
@pytest.mark.parametrize("deadline_s", [2.0, inf])
def test_a_caller_below_its_share_is_admitted_and_answered_soon(
    loads: list[float], documents: int, seeds: int, deadline_s: float
) -> None:
    """Once it has asked for something: of those before the first 20 s many meet a queue that did not expect them."""
    light, alone = (
        [
            request
            for seed in range(seeds)
            for request in _callers(sent, seed=seed, documents=documents, deadlines_s=[deadline_s, 2.0, 2.0])[
                0
            ].requests
            if request.terms.caller == "0" and request.arrived > 20
        ]
        for sent in (loads, loads[:1])
    )
    answered = [request for request in light if request.latency_s < inf]
    assert len(answered) >= 0.97 * len(light)
    assert _quantile(answered, 0.95) <= 1.5 * _quantile(alone, 0.95)


# What an answer needs beside the passes, over HTTP on a machine that is busy.
_ANSWER_S = 0.02


@pytest.mark.parametrize(
    ("speed", "machine", "in_time", "used"),
    [
        pytest.param(0.4, None, 0.99, 0.97, id="steady"),
        pytest.param(0.4, Stalls(every_s=3, length_s=0.15, factor=3), 0.99, 0.92, id="stalls"),
        pytest.param(0.4, Drift(every_s=20), 0.99, 1.05, id="drift"),
        pytest.param(0.18, None, 0.99, 0.97, id="slow"),
        pytest.param(0.18, Stalls(every_s=3, length_s=0.15, factor=3), 0.99, 0.9, id="slow, stalls"),
        pytest.param(0.18, Stalls(every_s=10, length_s=1, factor=2), 0.97, 0.9, id="slow, long stalls"),
        pytest.param(0.18, Drift(every_s=60), 0.99, 0.92, id="slow, drift"),
    ],
)
def test_a_deep_queue_is_no_reason_to_be_late(
    speed: float, machine: Stalls | Drift | None, in_time: float, used: float
) -> None:
    """The overload of `loadtest.overload`: 30 documents, 2 s, three times what an engine of 160 pairs/s can do, or one
    of 70, which has three such requests at a time at most.
    """
    pairs_per_s = 2 * 4 / pass_s([142] * 4) * speed
    answered, admitted = 0, 0
    for seed in range(4):
        simulation = Simulation(seed=seed, noise=0.35, speed=speed, stalls=machine)
        open_loop(simulation, requests_per_s=3 * pairs_per_s / 30, documents=[30], until=60, deadline_s=2.0)
        simulation.run()
        admitted += sum(request.refusal is None for request in simulation.requests)
        answered += sum(request.latency_s + _ANSWER_S <= 2.0 for request in simulation.requests)
    assert answered >= in_time * admitted
    assert answered * 30 / (4 * 60) >= used * pairs_per_s, "a request that is late has cost engine time for nothing"


def test_a_long_stall_does_not_close_the_door_for_ever() -> None:
    """Nobody who is refused has a pass from which the engine's real speed could be learnt."""
    simulation = Simulation(seed=7, stalls=Stalls(every_s=100, length_s=40, factor=60))
    open_loop(simulation, requests_per_s=2, documents=[30], until=160, deadline_s=0.5)
    simulation.run()
    stalled = [request for request in simulation.requests if 70 < request.arrived < 100]
    late = [request for request in simulation.requests if request.arrived > 130]
    assert sum(request.refusal is not None for request in stalled) >= 0.6 * len(stalled)
    assert sum(request.latency_s <= 0.5 for request in late) >= 0.95 * len(late)


@pytest.mark.parametrize("seed", range(5))
def test_a_request_that_retries_as_told_is_admitted_then_and_not_long_before(seed: int) -> None:
    simulation = Simulation(seed=seed)
    for _ in range(10):
        simulation.submit(lengths_of(simulation.rng, 30), Terms(deadline=1.2))
    lengths = lengths_of(simulation.rng, 100)
    refusal = simulation.submit(lengths, Terms(deadline=1.2)).refusal
    assert isinstance(refusal, Overloaded)
    told = refusal.retry_after_s
    verdicts = []
    for moment in (told / 2, 2 * told):
        simulation.go_to(moment)
        verdicts.append(simulation.submit(lengths, Terms(deadline=moment + 1.2)).refusal)
    assert isinstance(verdicts[0], Overloaded)
    assert verdicts[1] is None
