"""One key's requests beside another key that does its worst in each part that they share, in virtual time."""

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from rerankd.cache.memory import MemoryCache
from tests.simulation.world import DENSE, UNANSWERED, Client, World, simulated

# Simulations of many requests: coverage more than doubles their time.
pytestmark = pytest.mark.uncovered

_SECONDS = 8.0
# Before that the engine's speed is not known yet, and the other key has only just begun.
_WARM_S = 2.0
# Of two cores, a sixteenth; and what a key may take before that counts.
_LOOP_PART = 0.135


def _clients(count: int, body: Callable[[World], bytes], **options: Any) -> Client:
    """So many clients of key a, each with one request at a time."""

    async def meet(world: World) -> None:
        await asyncio.gather(*(world.closed_loop("a", lambda: body(world), **options) for _ in range(count)))

    return meet


def _same(body: Callable[[World], bytes]) -> Callable[[World], bytes]:
    """The same body again and again, of each world its own: to make one of megabytes takes its time."""
    return cache(body)


async def _usual(world: World) -> None:
    """Key b: one client with 30 usual documents at a time."""
    await world.closed_loop("b", lambda: world.body(world.texts(30)))


_LARGE = _clients(10, lambda world: world.body(world.texts(1000)))
# Four times as many tokens as an estimate from characters says, all of them at once.
_DENSE = _clients(20, _same(lambda world: world.body(world.texts(3000, characters=(250, 350), letter=DENSE))))
# Megabytes are tokenized, and refused because one document does not fit.
_TOKENIZED = _clients(
    20,
    _same(lambda world: world.body([*world.texts(1000, characters=(1500, 2000)), "x" * 3000], truncation="error")),
)
_HANGING_UP = _clients(20, _same(lambda world: world.body(world.texts(1000, characters=(2000, 3000)))), patience_s=0.05)
# More than may be held in all, of bodies that do not end.
_HELD = _clients(20, _same(lambda _: bytes(40 << 20)), complete=False)
# Bodies of five megabytes that turn out to be no JSON at their end.
_READ = _clients(20, _same(lambda world: world.body(world.texts(2000, characters=(2000, 3000)))[:-1]))
# Ten thousand documents without text: nothing to compute, and an answer of as many results.
_WRITTEN = _clients(10, _same(lambda world: world.body([""] * 10_000)))


# The same for clients that do not wait until it is written.
_UNREAD = _clients(5, _same(lambda world: world.body([""] * 10_000)), patience_s=0.2)


async def _everything(world: World) -> None:
    await asyncio.gather(*(part(world) for part in (_HELD, _LARGE, _TOKENIZED, _READ, _WRITTEN)))


def _latencies_s(world: World) -> list[float]:
    return [reply.latency_s for reply in world.replies["b"] if reply.sent > _WARM_S]


def _statuses(world: World) -> set[int]:
    return {reply.status for reply in world.replies["b"]} - {UNANSWERED}


def _p95_s(world: World) -> float:
    return float(np.quantile(_latencies_s(world), 0.95))


@cache
def _alone_s() -> float:
    return _p95_s(simulated([_usual], seconds=_SECONDS))


@pytest.mark.parametrize(
    "worst",
    [
        pytest.param(_HELD, id="body bytes"),
        pytest.param(_LARGE, id="engine"),
        pytest.param(_DENSE, id="admission"),
        pytest.param(_TOKENIZED, id="tokenizing"),
        pytest.param(_HANGING_UP, id="hanging up"),
        pytest.param(_READ, id="parsing"),
        pytest.param(_WRITTEN, id="answers"),
        pytest.param(_UNREAD, id="answers that are not read"),
        pytest.param(_everything, id="everything at once"),
    ],
)
def test_a_key_beside_another_one_takes_at_most_half_as_long_again(worst: Client) -> None:
    world = simulated([_usual, worst], seconds=_SECONDS)
    assert _statuses(world) == {200}, "none of its requests is refused"
    assert len(_latencies_s(world)) >= 30
    assert _p95_s(world) <= 1.5 * _alone_s()
    # Here threads have cores of their own. Where they have not, this is what the passes lose to the event loop.
    assert world.loop.computed_s / _SECONDS <= _LOOP_PART


def test_a_key_that_is_alone_has_the_loop_for_itself() -> None:
    world = simulated([_READ], seconds=2)
    assert world.loop.computed_s / 2 > 0.95


def test_where_one_thread_tokenizes_a_key_waits_for_one_chunk() -> None:
    world = simulated([_usual, _TOKENIZED], seconds=_SECONDS, threads=1)
    assert _statuses(world) == {200}
    assert _p95_s(world) <= 1.5 * _alone_s()


def test_a_keys_scores_stay_in_the_cache_beside_a_key_that_fills_it() -> None:
    """Key b repeats five requests; key a asks for more pairs than there is room for."""

    async def repeated(world: World) -> None:
        bodies = [world.body(world.texts(30)) for _ in range(5)]
        while True:
            for body in bodies:
                await world.post("b", body)
                await asyncio.sleep(0.2)

    alone, beside = (
        simulated([repeated, *others], seconds=_SECONDS, cache=MemoryCache(max_entries=400))
        for others in ([], [_clients(4, lambda world: world.body(world.texts(300, characters=(20, 400))))])
    )
    for world in (alone, beside):
        known = [reply.latency_s for reply in world.replies["b"] if reply.sent > _SECONDS / 2]
        assert len(known) >= 10
        assert max(known) <= 0.001, "nothing of them is computed again"


def test_a_large_body_waits_for_no_more_of_anothers_bodies_than_it_has_itself() -> None:
    async def megabytes(world: World) -> None:
        body = world.body(world.texts(1000, characters=(2000, 3000)))[:-1]
        await world.closed_loop("b", lambda: body)

    alone, beside = (simulated([megabytes, *others], seconds=3 + _WARM_S) for others in ([], [_READ]))
    assert _statuses(beside) == {400}
    assert _p95_s(beside) <= 2.2 * _p95_s(alone)
