"""`on_deadline: depth`: as many documents are read as fit before the deadline, in virtual time."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.simulation.world import Client, World, simulated

_DOCUMENTS = 1000
_DEADLINES_S = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class _Asked:
    """What became of a request: its status and latency, and how many documents were read, by the answer and in fact."""

    deadline_s: float
    status: int
    latency_s: float
    depth: int
    scored: int
    computed_tokens: int


async def _ask(world: World, deadline_s: float, **fields: Any) -> _Asked:
    body = world.body(world.texts(_DOCUMENTS, characters=(500, 501)), **fields)
    before = world.engine.tokens
    reply = await world.post("b", body, deadline_s=deadline_s)
    answer = json.loads(reply.body)
    results = answer.get("results", [])
    return _Asked(
        deadline_s,
        reply.status,
        reply.latency_s,
        answer.get("meta", {}).get("depth", -1),
        sum(result.get("scored", True) for result in results),
        world.engine.tokens - before,
    )


def _asked(on_deadline: str, *others: Client, **fields: Any) -> list[_Asked]:
    found: list[_Asked] = []

    async def ask(world: World) -> None:
        for _ in range(10):
            await world.post("b", world.body(world.texts(30)))
        found.extend([await _ask(world, deadline_s, on_deadline=on_deadline, **fields) for deadline_s in _DEADLINES_S])

    simulated([ask, *others], seconds=8)
    assert len(found) == len(_DEADLINES_S)
    return found


async def _hurried(world: World) -> None:
    """Four clients of another key, with deadlines that are soon."""
    clients = (world.closed_loop("a", lambda: world.body(world.texts(20)), deadline_s=0.6) for _ in range(4))
    await asyncio.gather(*clients)


def test_the_depth_is_what_fits_and_the_answer_says_it() -> None:
    asked = _asked("depth")
    for one in asked:
        assert one.status == 200
        assert one.latency_s <= one.deadline_s
        assert one.scored == one.depth
        # Not much of the time that there was is left over.
        assert one.latency_s >= 0.6 * one.deadline_s
    depths = [one.depth for one in asked]
    assert depths == sorted(depths)
    assert 10 <= depths[0] < depths[-1] < _DOCUMENTS
    # Nothing is computed that the answer does not have.
    shares = [one.computed_tokens / one.depth for one in asked]
    assert max(shares) == pytest.approx(min(shares), rel=0.01)


def test_without_it_such_a_request_is_refused() -> None:
    assert {one.status for one in _asked("error")} == {504}


def test_what_others_have_waiting_counts() -> None:
    alone, beside = _asked("depth"), _asked("depth", _hurried)
    assert {one.status for one in beside} == {200}
    for one in beside:
        assert one.latency_s <= one.deadline_s
        assert one.scored == one.depth
    assert sum(one.depth for one in beside) < 0.8 * sum(one.depth for one in alone)


def test_several_queries_have_equal_parts_of_the_time() -> None:
    one, several = _asked("depth"), _asked("depth", queries=["another", "a third"])
    for alone, asked in zip(one, several, strict=True):
        assert asked.status == 200
        assert asked.latency_s <= asked.deadline_s
        # Each of the three queries is read to about a third of the depth.
        assert alone.depth / 5 <= asked.depth == asked.scored <= alone.depth / 2


@dataclass(frozen=True)
class _Cut:
    """A cascade's answer: what `meta.cuts` says, and how many pairs each engine computed."""

    latency_s: float
    status: int
    said: dict[str, int]
    computed: dict[str, int]


def _cuts(deadlines_s: Sequence[float]) -> list[_Cut]:
    found: list[_Cut] = []

    async def ask(world: World) -> None:
        engines = {"fake": world.engine, "dear": world.dear_engine}
        for _ in range(10):
            await world.post("b", world.body(world.texts(30), model="dear"))
            await world.post("b", world.body(world.texts(30)))
        for deadline_s in deadlines_s:
            before = {name: engine.pairs for name, engine in engines.items()}
            body = world.body(world.texts(200, characters=(500, 501)), model="cascade", on_deadline="depth")
            reply = await world.post("b", body, deadline_s=deadline_s)
            computed = {name: engine.pairs - before[name] for name, engine in engines.items()}
            said = json.loads(reply.body).get("meta", {}).get("cuts", {})
            found.append(_Cut(reply.latency_s, reply.status, said, computed))

    simulated([ask], seconds=200)
    return found


def test_a_cascade_is_cut_where_its_models_fit_and_the_answer_says_it() -> None:
    deadlines_s = (0.5, 2.0, 4.0, 8.0, 60.0)
    cuts = _cuts(deadlines_s)
    for one, deadline_s in zip(cuts, deadlines_s, strict=True):
        assert one.status == 200
        assert one.latency_s <= deadline_s
        assert one.said["fake"] == one.computed["fake"]
        # One that the deadline meets on its way counts for nothing.
        assert one.said["dear"] == one.computed["dear"] or (one.said["dear"], one.computed["dear"]) == (0, 1)
    # The first model takes what time there is; the second one what is left.
    assert 10 <= cuts[0].said["fake"] < 200
    assert {one.said["fake"] for one in cuts[1:]} == {200}
    dear = [one.said["dear"] for one in cuts]
    assert dear == sorted(dear)
    assert dear[0] < dear[2] < dear[3] <= dear[-1] == 100
