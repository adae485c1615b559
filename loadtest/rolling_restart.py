"""Checks whether requests fail while replicas are updated, moved to other nodes, restarted, or killed.

    python -m loadtest.rolling_restart [--requests 5000] [--clients 8] [--documents 4]

Two services behind HAProxy with the configuration of deploy/haproxy, its default checks included, answer clients that
never pause and keep their connections.

- rolling update, as the manifests of deploy/kubernetes ask for it: a new replica is ready before an old one gets
  SIGTERM, until both are new
- node drain: an old replica gets SIGTERM while its replacement starts elsewhere. It has the manifests' grace period,
  then SIGKILL
- rolling restart: each is stopped with SIGTERM and started again in its place, one after the other
- kill -9: one is killed and started again at once, as a supervisor does

In each part, clients send `--requests` at least, half of them after the change. Needs haproxy.
"""

import asyncio
import csv
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import httpx

from loadtest.claims import Claim, conclude, parser, run
from loadtest.servers import Server, free_port, haproxy_server, rerankd_at, wait_until_ready
from rerankd.tools.benchmark.connection import Connection, ConnectionLost, Target
from rerankd.tools.benchmark.workload import Shape, Workload

# terminationGracePeriodSeconds of deploy/kubernetes
_GRACE_S = 45.0
_LONGEST_CHANGE_S = 60.0
_TIMEOUT_S = 60.0

T = TypeVar("T")


@dataclass(slots=True)
class Replica:
    """One service, which can be stopped and started again on its port."""

    folder: Path
    registry: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    _running: ExitStack = field(default_factory=ExitStack)
    _server: Server | None = None

    def start(self) -> None:
        server = rerankd_at(self.port, self.folder, self.registry, self.environment)
        self._server = self._running.enter_context(server)

    def stop(self, how: signal.Signals) -> None:
        """Send the signal and wait for the end.

        Raises:
            TimeoutExpired: the grace period of the manifests is over.
        """
        self.signal(how)
        self.wait_until_gone()

    def signal(self, how: signal.Signals) -> None:
        assert self._server is not None
        self._server.process.send_signal(how)

    def wait_until_gone(self) -> None:
        """As `stop`."""
        assert self._server is not None
        self._server.process.wait(timeout=_GRACE_S)
        self._running.close()

    def wait_until_ready(self) -> None:
        assert self._server is not None
        wait_until_ready(self._server)

    def close(self) -> None:
        self._running.close()


@dataclass(frozen=True, slots=True)
class Deployment:
    """`replicas` run, on two nodes; `spares` may run in their place, on others. HAProxy knows the ports of all."""

    proxy: Server
    replicas: list[Replica]
    spares: list[Replica]

    def wait_until_up(self) -> None:
        """Until HAProxy sends requests to all replicas, and to no spare.

        Raises:
            TimeoutError: it does not.
        """
        ends = perf_counter() + _LONGEST_CHANGE_S
        running = {f"r{replica.port}" for replica in self.replicas}
        # "UP 1/3" is one that failed a check or two: it still gets requests
        while {name for name, status in self.states().items() if status.startswith("UP")} != running:
            if perf_counter() > ends:
                raise TimeoutError(f"HAProxy holds the replicas to be {self.states()}")
            time.sleep(0.1)

    def states(self) -> dict[str, str]:
        """What HAProxy thinks of each replica, by its name there."""
        answer = httpx.get(f"{self.proxy.url}/stats;csv", timeout=5)
        rows = csv.DictReader(answer.text.removeprefix("# ").splitlines())
        return {row["svname"]: row["status"] for row in rows if row["svname"].startswith("r")}

    def swap(self) -> tuple[Replica, Replica]:
        """The oldest replica, and the spare that is in its place from now on."""
        old, new = self.replicas.pop(0), self.spares.pop(0)
        self.replicas.append(new)
        self.spares.append(old)
        return old, new


@contextmanager
def deployed(registry: Path, *, shutdown_delay_s: float) -> Iterator[Deployment]:
    """Two ready replicas behind HAProxy."""
    environment = {
        "RERANKD_CACHE_URL": "none://",
        "RERANKD_LOG_LEVEL": "WARNING",
        "RERANKD_SHUTDOWN_DELAY_S": f"{shutdown_delay_s:g}",
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        replicas, spares = ([Replica(Path(name), registry, environment) for _ in range(2)] for _ in range(2))
        for replica in [*replicas, *spares]:
            stack.callback(replica.close)
        for replica in replicas:
            replica.start()
        for replica in replicas:
            replica.wait_until_ready()
        ports = [replica.port for replica in [*replicas, *spares]]
        deployment = Deployment(stack.enter_context(haproxy_server(Path(name), ports)), replicas, spares)
        deployment.wait_until_up()
        yield deployment


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: when it was sent, by `perf_counter`, and its HTTP status or what else became of it."""

    at: float
    outcome: str

    @property
    def failed(self) -> bool:
        return self.outcome != "200"


@asynccontextmanager
async def loaded(deployment: Deployment, shape: Shape, *, clients: int) -> AsyncIterator[list[Sent]]:
    """Clients that send their next request when the last is answered, for as long as the context lasts. The list is
    whole once the context is left.
    """
    requests: list[Sent] = []
    stopped = asyncio.Event()

    async def client(seed: int) -> None:
        connection = Connection(Target.from_url(deployment.proxy.url))
        bodies = Workload(shape, seed=seed)
        while not stopped.is_set():
            requests.append(await _send(connection, next(bodies).content))
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
        try:
            yield requests
        finally:
            stopped.set()


async def _send(connection: Connection, body: bytes) -> Sent:
    at = perf_counter()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return Sent(at, str((await connection.post(body)).status))
    except TimeoutError:
        return Sent(at, "timeout")
    except ConnectionLost:
        return Sent(at, "connection lost")


def update_all(deployment: Deployment) -> None:
    """As `maxSurge: 1, maxUnavailable: 0` do: a new replica serves before an old one stops."""
    for _ in range(len(deployment.replicas)):
        old, new = deployment.swap()
        new.start()
        new.wait_until_ready()
        old.stop(signal.SIGTERM)
        deployment.wait_until_up()


def drain_node(deployment: Deployment) -> None:
    """Evict the replica of one node: it gets SIGTERM, and its replacement starts at the same time."""
    old, new = deployment.swap()
    old.signal(signal.SIGTERM)
    new.start()
    old.wait_until_gone()
    new.wait_until_ready()
    deployment.wait_until_up()


def restart_all(deployment: Deployment) -> None:
    """One after another, as in the deployment of a new version."""
    for replica in deployment.replicas:
        replica.stop(signal.SIGTERM)
        replica.start()
        replica.wait_until_ready()
        deployment.wait_until_up()


def kill_one(deployment: Deployment) -> float:
    """Kill a replica and start it again at once; when it died, by `perf_counter`."""
    replica, *_ = deployment.replicas
    replica.stop(signal.SIGKILL)
    died = perf_counter()
    replica.start()
    replica.wait_until_ready()
    deployment.wait_until_up()
    return died


async def experiment(deployment: Deployment, arguments: Namespace) -> list[Claim]:
    claims: list[Claim] = []
    for what, change in (("rolling update", update_all), ("node drain", drain_node), ("rolling restart", restart_all)):
        requests, _ = await _under_load(deployment, arguments, change)
        claims += _told(what, requests, limit=0, at_least=arguments.requests)
    killed, died = await _under_load(deployment, arguments, kill_one)
    later = [request for request in killed if request.at > died]
    return [
        *claims,
        # a client has one request at a time
        *_told("kill -9", killed, limit=arguments.clients, at_least=arguments.requests),
        Claim("kill -9: failed requests that were sent after it", sum(one.failed for one in later), "<=", 0),
    ]


async def _under_load(
    deployment: Deployment, arguments: Namespace, change: Callable[[Deployment], T]
) -> tuple[list[Sent], T]:
    """Change the deployment under load: all requests, and what the change returns."""
    print(f"{change.__name__}: at least {arguments.requests} requests", file=sys.stderr, flush=True)
    async with loaded(deployment, Shape((arguments.documents,)), clients=arguments.clients) as requests:
        await asyncio.sleep(arguments.seconds)
        outcome = await asyncio.to_thread(change, deployment)
        changed = len(requests)
        while len(requests) < max(arguments.requests, changed + arguments.requests // 2):  # noqa: ASYNC110 - clients go on
            await asyncio.sleep(0.1)
    return requests, outcome


def _told(what: str, requests: Sequence[Sent], *, limit: int, at_least: int) -> list[Claim]:
    outcomes = Counter(request.outcome for request in requests)
    answered = outcomes.pop("200", 0)
    return [
        Claim(f"{what}: requests", len(requests), ">=", at_least),
        *(Claim(f"{what}: {outcome}", count) for outcome, count in outcomes.items()),
        Claim(f"{what}: failed requests", len(requests) - answered, "<=", limit),
    ]


def main() -> int:
    options = parser(__doc__, seconds=2)
    options.add_argument("--requests", type=int, default=5000, help="in each part")
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--documents", type=int, default=4)
    options.add_argument("--shutdown-delay-s", type=float, default=8.0, help="RERANKD_SHUTDOWN_DELAY_S")
    arguments = options.parse_args()
    with deployed(arguments.registry, shutdown_delay_s=arguments.shutdown_delay_s) as deployment:
        claims = run(experiment(deployment, arguments))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
