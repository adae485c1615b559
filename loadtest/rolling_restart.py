"""Checks whether requests fail during a rolling deployment, or when a replica dies.

    python -m loadtest.rolling_restart [--seconds 20] [--clients 8] [--shutdown-delay-s 8]

Two services behind HAProxy with the configuration of deploy/haproxy, its default checks included, answer clients that
never pause. First each of them is stopped with SIGTERM and started again, one after the other. Then one is killed with
SIGKILL and started again at once, as a supervisor does. There are `--seconds` of load before and after each. Needs
haproxy.
"""

import asyncio
import csv
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import httpx

from loadtest.claims import Claim, conclude, parser, run
from loadtest.servers import Server, free_port, haproxy_server, rerankd_at, wait_until_ready
from rerankd.tools.benchmark.connection import Connection, ConnectionLost, Target
from rerankd.tools.benchmark.workload import Shape, Workload

_LONGEST_STOP_S = 60.0
_TIMEOUT_S = 60.0


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
        """Send the signal and wait for the end."""
        assert self._server is not None
        self._server.process.send_signal(how)
        self._server.process.wait(timeout=_LONGEST_STOP_S)
        self._running.close()

    def wait_until_ready(self) -> None:
        assert self._server is not None
        wait_until_ready(self._server)

    def close(self) -> None:
        self._running.close()


@dataclass(frozen=True, slots=True)
class Deployment:
    proxy: Server
    replicas: Sequence[Replica]

    def wait_until_up(self) -> None:
        """Until HAProxy sends requests to all replicas.

        Raises:
            TimeoutError: it does not.
        """
        ends = perf_counter() + _LONGEST_STOP_S
        while (states := self.states()) != ["UP"] * len(self.replicas):
            if perf_counter() > ends:
                raise TimeoutError(f"HAProxy holds the replicas to be {states}")
            time.sleep(0.1)

    def states(self) -> list[str]:
        """What HAProxy thinks of each replica."""
        answer = httpx.get(f"{self.proxy.url}/stats;csv", timeout=5)
        rows = csv.DictReader(answer.text.removeprefix("# ").splitlines())
        return [row["status"] for row in rows if row["svname"].startswith("r")]


@contextmanager
def deployed(registry: Path, *, shutdown_delay_s: float) -> Iterator[Deployment]:
    """Two ready replicas behind HAProxy."""
    environment = {
        "RERANKD_CACHE_URL": "none://",
        "RERANKD_LOG_LEVEL": "WARNING",
        "RERANKD_SHUTDOWN_DELAY_S": f"{shutdown_delay_s:g}",
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        replicas = [Replica(Path(name), registry, environment) for _ in range(2)]
        for replica in replicas:
            stack.callback(replica.close)
            replica.start()
        for replica in replicas:
            replica.wait_until_ready()
        proxy = stack.enter_context(haproxy_server(Path(name), [replica.port for replica in replicas]))
        yield Deployment(proxy, replicas)


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
    shape = Shape((arguments.documents,))
    async with loaded(deployment, shape, clients=arguments.clients) as restarted:
        await asyncio.sleep(arguments.seconds)
        await asyncio.to_thread(restart_all, deployment)
        await asyncio.sleep(arguments.seconds)
    async with loaded(deployment, shape, clients=arguments.clients) as killed:
        await asyncio.sleep(arguments.seconds)
        died = await asyncio.to_thread(kill_one, deployment)
        await asyncio.sleep(arguments.seconds)
    later = [request for request in killed if request.at > died]
    return [
        *_told("rolling restart", restarted, limit=0),
        # a client has one request at a time
        *_told("kill -9", killed, limit=arguments.clients),
        Claim("kill -9: failed requests that were sent after it", sum(one.failed for one in later), "<=", 0),
    ]


def _told(what: str, requests: Sequence[Sent], *, limit: int) -> list[Claim]:
    outcomes = Counter(request.outcome for request in requests)
    answered = outcomes.pop("200", 0)
    return [
        Claim(f"{what}: requests", len(requests)),
        *(Claim(f"{what}: {outcome}", count) for outcome, count in outcomes.items()),
        Claim(f"{what}: failed requests", len(requests) - answered, "<=", limit),
    ]


def main() -> int:
    options = parser(__doc__, seconds=20)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--documents", type=int, default=20)
    options.add_argument("--shutdown-delay-s", type=float, default=8.0, help="RERANKD_SHUTDOWN_DELAY_S")
    arguments = options.parse_args()
    with deployed(arguments.registry, shutdown_delay_s=arguments.shutdown_delay_s) as deployment:
        claims = run(experiment(deployment, arguments))
    return conclude(claims, arguments)


if __name__ == "__main__":
    sys.exit(main())
