"""Checks the service on a Ray cluster of several nodes on this machine.

    python -m loadtest.ray [--seconds 10] [--clients 16]

The engine waits in each pass as for a device, so that two replicas can be twice as fast on one machine. First one
replica answers clients that never pause, then two, on a node each. Then a node is killed under load; every answer is
compared with that of the same model in this process. Needs the extra `ray`.
"""

import asyncio
import sys
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

from loadtest import device_engine
from loadtest.claims import Claim, conclude, parser, run
from loadtest.ray_cluster import SLOT, Nodes, local_cluster, nodes_of_replicas, served, wait_for_other_nodes
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent

_ROOT = Path(__file__).resolve().parents[1]
_TOLERANCE = 1e-4
_PASS_S = 0.2
_PAIRS = 8
_DIFFERENT = 64
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: when it was sent and answered, by `perf_counter`, and its outcome: right, wrong or lost."""

    at: float
    ended: float
    outcome: str


def write_registry(folder: Path, *, pass_s: float = _PASS_S) -> Path:
    """A tiny model on the engine that waits."""
    device_engine.install()
    path = folder / "registry.toml"
    path.write_text(
        f'[[model]]\nname = "tiny"\npath = "{_ROOT / "tests" / "data" / "tiny-bert"}"\nengine = "device"\n'
        f'scorer = "cross-encoder"\nengine_options = {{ pass_s = {pass_s}, pass_pairs = {_PAIRS} }}\n',
        encoding="utf-8",
    )
    return path


def bodies(number: int = _DIFFERENT) -> list[dict[str, Any]]:
    """Requests of a pass each. No two pairs are alike to the tiny model either, which knows all digits."""
    return [
        {"query": f"query {' '.join(f'{one:03}')}", "documents": [f"text {document}" for document in range(_PAIRS)]}
        for one in range(number)
    ]


async def expected(registry: Path, asked: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The scores of each request's documents, by the same model in this process."""
    found = []
    async with running_service(Settings(registry=registry), Silent()) as service:
        await service.model_named(None).settled()
        for body in asked:
            result = await service.rerank(RerankRequest(query=body["query"], documents=body["documents"]))
            score_of = {ranked.index: ranked.relevance_score for ranked in result.results}
            found.append([score_of[index] for index in range(len(score_of))])
    return found


@asynccontextmanager
async def loaded(
    url: str,
    asked: Sequence[dict[str, Any]],
    scores: Sequence[Sequence[float]],
    *,
    clients: int,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[list[Sent]]:
    """Clients that never pause, while the context lasts. The list is whole once it is left."""
    sent: list[Sent] = []
    stopped = asyncio.Event()
    numbers = count()
    async with (
        httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, headers=headers) as session,
        asyncio.TaskGroup() as group,
    ):

        async def client() -> None:
            while not stopped.is_set():
                number = next(numbers) % len(asked)
                at = perf_counter()
                try:
                    answer = await session.post("/rerank", json=asked[number])
                except httpx.HTTPError as error:
                    sent.append(Sent(at, perf_counter(), f"lost: {type(error).__name__}"))
                else:
                    sent.append(Sent(at, perf_counter(), _outcome(answer, scores[number])))

        for _ in range(clients):
            group.create_task(client())
        try:
            yield sent
        finally:
            stopped.set()


def _outcome(answer: httpx.Response, scores: Sequence[float]) -> str:
    if answer.status_code != 200:
        return f"lost: {answer.status_code}"
    results = answer.json()["results"]
    found = {one["index"]: one["relevance_score"] for one in results}
    right = found.keys() == set(range(len(scores))) and all(
        abs(found[index] - score) <= _TOLERANCE for index, score in enumerate(scores)
    )
    return "right" if right else "wrong"


async def rate(
    url: str, asked: Sequence[dict[str, Any]], scores: Sequence[Sequence[float]], arguments: Namespace
) -> float:
    """Right answers a second, once the clients have warmed the replicas up."""
    async with loaded(url, asked, scores, clients=arguments.clients) as sent:
        await asyncio.sleep(arguments.seconds / 4)
        begun = perf_counter()
        await asyncio.sleep(arguments.seconds)
        ended = perf_counter()
    return sum(begun <= one.ended < ended and one.outcome == "right" for one in sent) / (ended - begun)


async def kill_a_node(
    url: str, nodes: Nodes, asked: Sequence[dict[str, Any]], scores: Sequence[Sequence[float]], arguments: Namespace
) -> list[Claim]:
    """Kill a node with one of two replicas under load; another one has room for a new replica."""
    async with loaded(url, asked, scores, clients=arguments.clients) as sent:
        await asyncio.sleep(arguments.seconds / 2)
        node, *_ = await asyncio.to_thread(nodes_of_replicas)
        killed = perf_counter()
        await asyncio.to_thread(nodes.kill, node)
        await asyncio.to_thread(wait_for_other_nodes, node, replicas=2)
        whole = perf_counter()
        await asyncio.sleep(arguments.seconds / 4)
    return [*told(sent, killed), Claim("node killed: two replicas run again after, s", whole - killed)]


def told(sent: Sequence[Sent], killed: float) -> list[Claim]:
    """What became of requests around a kill."""
    during = [one for one in sent if one.at < killed <= one.ended]
    ends = sorted(one.ended for one in sent if one.ended >= killed and one.outcome == "right")
    pauses = [later - earlier for earlier, later in zip([killed, *ends], ends, strict=False)]
    return [
        Claim("node killed: requests", len(sent), ">=", 1),
        Claim("node killed: wrong answers", sum(one.outcome == "wrong" for one in sent), "<=", 0),
        Claim("node killed: lost requests", sum(one.outcome.startswith("lost") for one in sent), "<=", 0),
        Claim("node killed: requests under way", len(during), ">=", 1),
        Claim(
            "node killed: last of them answered after, s", max((one.ended for one in during), default=killed) - killed
        ),
        Claim("node killed: longest pause between answers, s", max(pauses, default=0.0)),
    ]


def main() -> int:
    options = parser(__doc__, seconds=10)
    options.add_argument("--clients", type=int, default=16)
    arguments = options.parse_args()
    asked = bodies()
    with tempfile.TemporaryDirectory() as name, local_cluster(3) as nodes:
        registry = write_registry(Path(name))
        settings = {"registry": str(registry), "cache_url": "none://", "log_level": "WARNING"}
        scores = run(expected(registry, asked))
        rates = {}
        for replicas in (1, 2):
            deployment = {"min_replicas": replicas, "max_replicas": replicas, "num_cpus": 0.5, "resources": {SLOT: 1}}
            with served(settings, [deployment]) as url:
                rates[replicas] = run(rate(url, asked, scores, arguments))
                killed = run(kill_a_node(url, nodes, asked, scores, arguments)) if replicas == 2 else []
    claims = [
        Claim("one replica, requests/s", rates[1], ">=", 0.1),
        Claim("two replicas, requests/s", rates[2], ">=", 0.1),
        Claim("two / one", rates[2] / rates[1], ">=", 1.9),
        *killed,
    ]
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
