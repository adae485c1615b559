"""What a refusal says in Retry-After against the truth, in virtual time: see `simulation`.

The truth is what `loadtest.overload` measures: when the load stops at a refusal, how long it takes until the same
request, sent again and again, is admitted. Whether admitted requests are in time is for `test_policy`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

import numpy as np
import pytest

from rerankd.domain import Terms
from rerankd.errors import Overloaded
from tests.unit.batching.simulation import Drift, Request, Simulation, Stalls, lengths_of, pass_s

# Simulations of minutes: coverage more than doubles their time.
pytestmark = pytest.mark.uncovered

_SPEED = 0.4
_PAIRS_PER_S = 2 * 4 / pass_s([142] * 4) * _SPEED
_PROBE_S = 0.02
# What is shorter counts as that: nobody comes back so soon.
_SHORTEST_S = 0.1
_LASTS_S = 40.0
# The load lasts as long as a random number between these before a refusal counts, so that any refusal may.
_LOADED_S = (0.5, 2.5)


@dataclass(frozen=True, slots=True)
class Overload:
    """`times` the capacity arrives at a queue of `limit` tokens; a share of the clients, `leaving`, goes away within
    two seconds.
    """

    times: float = 3.0
    documents: Sequence[int] = (30,)
    deadlines_s: Sequence[float] = (2.0,)
    limit: int = 10**9
    callers: int = 1
    leaving: float = 0.0
    machine: Stalls | Drift | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was told, and how long it took until the request was admitted."""

    told_s: float
    true_s: float

    @property
    def error(self) -> float:
        """The factor between both."""
        told_s, true_s = max(_SHORTEST_S, self.told_s), max(_SHORTEST_S, self.true_s)
        return max(told_s / true_s, true_s / told_s)


def _refusals(overload: Overload, *, seed: int) -> Iterator[Refusal]:
    """Load for some time until a refusal, wait until the request is admitted, load again."""
    rng = Random(seed)
    simulation = Simulation(
        seed=seed, noise=0.35, speed=_SPEED, stalls=overload.machine, max_waiting_tokens=overload.limit
    )
    while simulation.now < _LASTS_S:
        refused, ahead_s = _refused(simulation, overload, rng)
        told = refused.refusal
        assert isinstance(told, Overloaded)
        admitted = refused
        while admitted.refusal:
            simulation.go_to(simulation.now + _PROBE_S)
            terms = Terms(deadline=simulation.now + ahead_s, caller=refused.terms.caller)
            admitted = simulation.submit(refused.lengths, terms)
        yield Refusal(told.retry_after_s, admitted.arrived - refused.arrived)


def _refused(simulation: Simulation, overload: Overload, rng: Random) -> tuple[Request, float]:
    """The first request that is refused after a random time, and how far away its deadline was."""
    counts_from = simulation.now + rng.uniform(*_LOADED_S)
    requests_per_s = overload.times * _PAIRS_PER_S / float(np.mean(overload.documents))
    while True:
        simulation.go_to(simulation.now + rng.expovariate(requests_per_s))
        ahead_s = rng.choice(overload.deadlines_s)
        request = simulation.submit(
            lengths_of(rng, rng.choice(overload.documents)),
            Terms(deadline=simulation.now + ahead_s, caller=str(rng.randrange(overload.callers))),
            patience_s=rng.uniform(0, 2) if rng.random() < overload.leaving else inf,
        )
        if isinstance(request.refusal, Overloaded) and simulation.now > counts_from:
            return request, ahead_s


_SIZES = (10, 30, 100)
_STALLS = Stalls(every_s=1.7, length_s=0.1, factor=3)
_DRIFT = Drift(every_s=20)


@pytest.mark.parametrize(
    "overload",
    [
        pytest.param(Overload(), id="deadline"),
        pytest.param(Overload(times=2), id="twice the capacity"),
        pytest.param(Overload(times=5, documents=_SIZES), id="five times, of all sizes"),
        pytest.param(Overload(documents=_SIZES), id="all sizes"),
        pytest.param(Overload(documents=[100]), id="large ones"),
        pytest.param(Overload(deadlines_s=[0.7]), id="short deadline"),
        pytest.param(Overload(deadlines_s=[1, 4]), id="two deadlines"),
        pytest.param(Overload(machine=_STALLS), id="stalls"),
        pytest.param(Overload(machine=_STALLS, documents=_SIZES), id="stalls, all sizes"),
        pytest.param(Overload(machine=_DRIFT), id="drift"),
        pytest.param(Overload(machine=_DRIFT, documents=_SIZES), id="drift, all sizes"),
        pytest.param(Overload(leaving=0.5), id="half of the clients leave"),
        pytest.param(Overload(leaving=0.5, documents=_SIZES), id="half leave, all sizes"),
        pytest.param(Overload(callers=4), id="four callers"),
        pytest.param(Overload(deadlines_s=[inf], limit=60_000), id="limit"),
        pytest.param(Overload(deadlines_s=[inf], limit=60_000, documents=_SIZES, machine=_DRIFT), id="limit, drift"),
        pytest.param(Overload(deadlines_s=[inf], limit=60_000, leaving=0.5), id="limit, half leave"),
        pytest.param(Overload(deadlines_s=[inf], limit=100_000, documents=_SIZES, callers=4), id="limit, four callers"),
        pytest.param(Overload(deadlines_s=[inf], limit=10_000, documents=[30, 100]), id="larger than the limit"),
        pytest.param(Overload(deadlines_s=[2, inf], limit=100_000), id="some have no deadline"),
    ],
)
def test_retry_after_is_within_a_factor_of_two_of_the_truth(overload: Overload) -> None:
    refusals = [refusal for seed in range(8) for refusal in _refusals(overload, seed=seed)]
    assert len(refusals) >= 80
    errors = [refusal.error for refusal in refusals]
    assert float(np.quantile(errors, 0.5)) <= 1.3
    assert float(np.quantile(errors, 0.9)) <= 2.0
