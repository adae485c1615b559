"""Arrival times of requests in an open loop."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from random import Random
from time import perf_counter


def poisson_arrivals(rate: float, seconds: float, rng: Random) -> list[float]:
    """The arrival times of a Poisson process: seconds from its start, ascending."""
    arrivals, now = [], rng.expovariate(rate)
    while now < seconds:
        arrivals.append(now)
        now += rng.expovariate(rate)
    return arrivals


async def in_time(started: float, offsets: Iterable[float]) -> AsyncIterator[float]:
    """Wait for each time, as of `perf_counter()`, and yield it. Past times are yielded at once."""
    for offset in offsets:
        intended = started + offset
        await asyncio.sleep(max(0.0, intended - perf_counter()))
        yield intended
