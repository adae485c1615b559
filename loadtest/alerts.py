"""Causes what each alert is for, on real processes, and checks that it fires then, and that none fires before.

    python -m loadtest.alerts [--faster 30] [--at-once 4] [--only RerankdDown ...]

A Prometheus for each cause scrapes the service with the configuration and the rules of deploy/prometheus. All their
durations are divided by `--faster`, and nothing else is changed. First all is well for a while; then the cause comes.
Needs prometheus and redis-server; three minutes on two cores.
"""

import asyncio
import json
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from os import mkfifo
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from loadtest.servers import Server, free_port, redis_server, rerankd_at, running, wait, wait_until_ready
from rerankd.tools.benchmark.connection import Connection, ConnectionLost, Target
from rerankd.tools.benchmark.workload import Shape, Words, Workload

_ROOT: Final = Path(__file__).resolve().parents[1]
_PROMETHEUS: Final = _ROOT / "deploy" / "prometheus"
_TINY: Final = _ROOT / "tests" / "data" / "tiny-bert"
_SHIPPED: Final = _ROOT / "models" / "minilm-qa"
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_SHORT: Final = Words(query=(2, 4), document=(4, 8))
_LONGEST_LINE: Final = 200


@dataclass
class Site:
    """Where one cause is tried: a folder, what Prometheus scrapes, and how much faster everything is."""

    folder: Path
    faster: float

    def scrape(self, *servers: Server) -> None:
        """Let Prometheus find these, and only these."""
        targets = [{"targets": [f"127.0.0.1:{server.port}" for server in servers]}] if servers else []
        new = self.folder / "targets.new"
        new.write_text(json.dumps(targets), encoding="utf-8")
        new.rename(self.folder / "targets.json")

    def registry(self, **entry: object) -> Path:
        """One with a model `m`, by default the shipped one."""
        fields = {"name": "m", "path": str(_SHIPPED), **entry}
        lines = [f"{name} = {_toml(value)}" for name, value in fields.items() if value is not None]
        path = self.folder / "registry.toml"
        path.write_text("\n".join(["[[model]]", *lines]) + "\n", encoding="utf-8")
        return path

    @contextmanager
    def service(
        self,
        registry: Path,
        settings: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        ready: bool = True,
    ) -> Iterator[Server]:
        """The service, ready if it shall be, and scraped from then on."""
        environment = {"RERANKD_CACHE_URL": "none://", "RERANKD_LOG_LEVEL": "WARNING", **(settings or {})}
        program = "loadtest.device_service"
        with rerankd_at(port or free_port(), self.folder, registry, environment, program=program) as server:
            if ready:
                wait_until_ready(server)
            self.scrape(server)
            yield server

    @contextmanager
    def device(self, **settings: str) -> Iterator[tuple[Server, Path]]:
        """A service whose engine takes 20 ms for a pass of 8 pairs, and the file that says what else it shall do."""
        state = self.folder / "device"
        state.write_text("0.02", encoding="utf-8")
        options = {"state": str(state), "pass_pairs": 8}
        # 60 s by default
        patience = {"RERANKD_STUCK_AFTER_S": f"{60 / self.faster:g}"}
        registry = self.registry(scorer="cross-encoder", engine="device", engine_options=options)
        with self.service(registry, {**patience, **settings}) as server:
            yield server, state


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + " }"
    return json.dumps(value)


@contextmanager
def clients(server: Server, number: int, *, pause_s: float = 0.1, deadline_ms: int | None = None) -> Iterator[None]:
    """Clients that ask, wait for the answer whatever it is, and pause, for as long as the context lasts."""
    headers = {} if deadline_ms is None else {"X-Request-Deadline-Ms": str(deadline_ms)}
    target, stopped = Target.from_url(server.url, headers=headers), Event()

    async def ask(seed: int) -> None:
        connection = Connection(target)
        for body in Workload(Shape((8,)), seed=seed, words=_SHORT):
            with suppress(ConnectionLost):
                await connection.post(body.content)
            await asyncio.sleep(pause_s)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(seed)) for seed in range(number)]
            await asyncio.to_thread(stopped.wait)
            for task in tasks:
                task.cancel()

    thread = Thread(target=asyncio.run, args=[all_of_them()])
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


Scenario = Callable[[Site], Iterator[None]]


def a_replica_is_killed(site: Site) -> Iterator[None]:
    with site.service(site.registry()) as server, clients(server, 2):
        yield
        server.process.kill()
        yield


def no_replica_is_found(site: Site) -> Iterator[None]:
    with site.service(site.registry()) as server, clients(server, 2):
        yield
        site.scrape()
        yield


def a_process_dies_again_and_again(site: Site) -> Iterator[None]:
    port = free_port()
    with site.service(site.registry(), port=port) as server, clients(server, 2):
        yield
        for _ in range(4):
            server.process.kill()
            server.process.wait()
            with site.service(site.registry(), port=port, ready=False) as server:  # noqa: PLW2901 - the next one
                _wait_for_scrapes(site)
        yield


def _wait_for_scrapes(site: Site) -> None:
    time.sleep(4 * 15 / site.faster)


def a_model_file_is_cut_off(site: Site) -> Iterator[None]:
    """As by a full disk; the service is started with it."""
    folder = site.folder / "model"
    shutil.copytree(_SHIPPED, folder)
    registry, port = site.registry(path=str(folder)), free_port()
    with site.service(registry, port=port) as server, clients(server, 2):
        yield
        server.process.kill()
        server.process.wait()
        (graph,) = folder.glob("*.onnx")
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
        with site.service(registry, port=port, ready=False):
            yield


def an_untrained_model_is_loaded(site: Site) -> Iterator[None]:
    """The shipped model gives way to one whose weights are random."""
    with site.service(site.registry()) as server, clients(server, 2):
        yield
        site.registry(path=str(_TINY), scorer="cross-encoder", engine="onnx")
        server.process.send_signal(signal.SIGHUP)
        yield


@contextmanager
def _remote(site: Site) -> Iterator[tuple[Server, Server]]:
    """A service in front of another one, which computes."""
    with site.service(site.registry()) as behind:
        there = {"url": behind.url, "model": "m"}
        options = {"protocol": "rerankd"}
        registry = site.registry(path=None, engine="remote", workers=64, options=options, engine_options=there)
        with site.service(registry) as server:
            yield server, behind


def a_remote_service_is_killed(site: Site) -> Iterator[None]:
    with _remote(site) as (server, behind), clients(server, 4):
        yield
        behind.process.kill()
        yield


def a_remote_service_stops_for_three_seconds(site: Site) -> Iterator[None]:
    with _remote(site) as (server, behind), clients(server, 4):
        yield
        with clients(server, 40):
            behind.process.send_signal(signal.SIGSTOP)
            time.sleep(3)
            behind.process.send_signal(signal.SIGCONT)
        yield


def more_clients_come_than_the_engine_can_serve(site: Site) -> Iterator[None]:
    with site.device(RERANKD_MAX_WAITING_TOKENS="1000") as (server, state), clients(server, 1):
        yield
        state.write_text("0.5", encoding="utf-8")
        with clients(server, 40, pause_s=0.5):
            yield


def an_engine_has_no_pause(site: Site) -> Iterator[None]:
    with site.device() as (server, state), clients(server, 1):
        yield
        state.write_text("0.5", encoding="utf-8")
        with clients(server, 4, pause_s=0):
            yield


def a_device_becomes_slower(site: Site) -> Iterator[None]:
    """From 20 ms for a pass to 5 s, while requests with deadlines are admitted."""
    with site.device() as (server, state), clients(server, 20, deadline_ms=1000):
        yield
        state.write_text("5", encoding="utf-8")
        yield


def a_device_hangs(site: Site) -> Iterator[None]:
    with site.device() as (server, state), clients(server, 4):
        yield
        state.write_text("hangs", encoding="utf-8")
        yield
        state.write_text("0", encoding="utf-8")


def a_device_fails(site: Site) -> Iterator[None]:
    with site.device() as (server, state), clients(server, 4):
        yield
        state.write_text("fails", encoding="utf-8")
        yield


def redis_is_killed(site: Site) -> Iterator[None]:
    with redis_server(site.folder) as redis:
        url = f"redis://127.0.0.1:{redis.port}"
        with site.service(site.registry(), {"RERANKD_CACHE_URL": url}) as server, clients(server, 4):
            yield
            redis.process.kill()
            yield


def the_reader_of_the_log_stops(site: Site) -> Iterator[None]:
    """Then requests fill the 8 MiB that the service keeps."""
    pipe, port = site.folder / "log", free_port()
    mkfifo(pipe)
    command = [sys.executable, "-m", "rerankd", "serve", "--port", str(port), "--registry", str(site.registry())]
    with (
        running(["cat", str(pipe)], port, site.folder / "read", {}) as reader,
        running(command, port, pipe, {"RERANKD_CACHE_URL": "none://"}) as server,
    ):
        wait_until_ready(server)
        site.scrape(server)
        with clients(server, 2):
            yield
            reader.process.send_signal(signal.SIGSTOP)
            with _flood(server):
                yield


@contextmanager
def _flood(server: Server) -> Iterator[None]:
    """Requests for a path that does not exist, whose lines in the log are long, as fast as they are answered."""
    request = f"GET /{'x' * _LONGEST_LINE} HTTP/1.1\r\nHost: a\r\nX-Request-ID: {'i' * 60}\r\n\r\n".encode()
    stopped = Event()

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            while not stopped.is_set():
                connection.sendall(request * 50)
                answered = b""
                while answered.count(b"HTTP/1.1 ") < 50:
                    answered += connection.recv(1 << 20)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            yield
        finally:
            stopped.set()
            for one in asking:
                one.result()


# Which alerts each cause has; others may follow from it.
CAUSES: Final[Mapping[Scenario, Sequence[str]]] = {
    a_replica_is_killed: ["RerankdDown"],
    no_replica_is_found: ["RerankdGone"],
    a_process_dies_again_and_again: ["RerankdRestarts"],
    a_model_file_is_cut_off: ["RerankModelNotReady"],
    an_untrained_model_is_loaded: ["RerankModelUncertified"],
    a_remote_service_is_killed: ["RerankRemoteAway", "RerankErrorBudgetBurnsFast", "RerankErrorBudgetBurnsSlowly"],
    a_remote_service_stops_for_three_seconds: ["RerankLatencyBudgetBurnsFast", "RerankLatencyBudgetBurnsSlowly"],
    more_clients_come_than_the_engine_can_serve: ["RerankRequestsShed", "RerankQueueNearlyFull"],
    an_engine_has_no_pause: ["RerankBusy"],
    a_device_becomes_slower: ["RerankDeadlinesMissed"],
    a_device_hangs: ["RerankEngineStuck", "RerankThreadsGivenUp"],
    a_device_fails: ["RerankBatchesFail"],
    redis_is_killed: ["RerankCacheErrors"],
    the_reader_of_the_log_stops: ["RerankLogLinesDropped"],
}


@dataclass
class Outcome:
    """What fired in a scenario: before the cause, and how many seconds after it began."""

    before: set[str] = field(default_factory=set)
    after_s: dict[str, float] = field(default_factory=dict)


def accelerated(folder: Path, faster: float) -> Path:
    """The configuration and the rules of the deployment with durations divided by `faster`, in a folder; the targets
    are in `targets.json` beside it.
    """
    shutil.copytree(_PROMETHEUS, folder)
    for path in (folder / "rules").glob("*.yml"):
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))
        for rule in (rule for group in groups["groups"] for rule in group["rules"]):
            rule["expr"] = re.sub(r"\[(\w+)\]", lambda found: f"[{_divided(found[1], faster)}]", rule["expr"])
            if "for" in rule:
                rule["for"] = _divided(rule["for"], faster)
        path.write_text(yaml.safe_dump(groups), encoding="utf-8")
    path = folder / "prometheus.yml"
    configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
    every = {name: _divided(value, faster) for name, value in configuration["global"].items()}
    configuration["global"] = {**every, "scrape_timeout": every["scrape_interval"]}
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"]
    job["file_sd_configs"] = [{"files": [str(folder.parent / "targets.json")]}]
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return path


def _divided(duration: str, faster: float) -> str:
    """`5m` as milliseconds."""
    return f"{round(1000 * int(duration[:-1]) * _UNITS[duration[-1]] / faster)}ms"


def tried(scenario: Scenario, alerts: Sequence[str], *, faster: float, healthy_s: float, longest_s: float) -> Outcome:
    """Run a scenario until all its alerts fire, or for `longest_s`."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        site = Site(Path(name), faster)
        steps = scenario(site)
        try:
            next(steps)
            with _prometheus(site) as ask:
                until = time.monotonic() + healthy_s
                while time.monotonic() < until:
                    outcome.before |= _active(ask, "firing")
                    time.sleep(0.1)
                began = time.monotonic()
                with ThreadPoolExecutor(1) as cause:
                    done = cause.submit(next, steps)
                    while time.monotonic() < began + longest_s and not set(alerts) <= outcome.after_s.keys():
                        for alert in _active(ask, "firing"):
                            outcome.after_s.setdefault(alert, time.monotonic() - began)
                        time.sleep(0.1)
                    done.result()
        finally:
            steps.close()  # type: ignore[attr-defined] # a generator
    return outcome


@contextmanager
def _prometheus(site: Site) -> Iterator[httpx.Client]:
    program = shutil.which("prometheus")
    if program is None:
        raise RuntimeError("the program prometheus is not installed; tests/install_servers.sh installs it")
    port = free_port()
    command = [
        program,
        f"--config.file={accelerated(site.folder / 'prometheus', site.faster)}",
        f"--storage.tsdb.path={site.folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(command, port, site.folder / "prometheus.log", {}) as server:
        wait(server, lambda: httpx.get(f"{server.url}/-/ready", timeout=5).status_code == 200)
        with httpx.Client(base_url=f"{server.url}/api/v1", timeout=30) as client:
            # It looks for targets every five seconds, and its first ones were not there before.
            wait(server, lambda: _up(client) and "RerankdGone" not in _active(client))
            yield client


def _up(ask: httpx.Client) -> bool:
    found: list[Any] = (
        ask.get("/query", params={"query": 'up{job="rerankd"}'}).raise_for_status().json()["data"]["result"]
    )
    return bool(found)


def _active(ask: httpx.Client, *states: str) -> set[str]:
    """The alerts that are pending or firing."""
    alerts: list[dict[str, Any]] = ask.get("/alerts").raise_for_status().json()["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if not states or alert["state"] in states}


def main() -> int:
    arguments = _parse()
    wanted = {one: alerts for one, alerts in CAUSES.items() if not arguments.only or {*alerts} & {*arguments.only}}

    def run(scenario: Scenario) -> Outcome:
        return tried(
            scenario,
            wanted[scenario],
            faster=arguments.faster,
            healthy_s=arguments.healthy_s,
            longest_s=arguments.longest_s,
        )

    with ThreadPoolExecutor(arguments.at_once) as pool:
        outcomes = dict(zip(wanted, pool.map(run, wanted), strict=True))
    table = Table("cause", "alert", "before", "fires after, s", "also fires")
    for scenario, alerts in wanted.items():
        outcome = outcomes[scenario]
        others = ", ".join(sorted(outcome.after_s.keys() - {*alerts}))
        for alert in alerts:
            before = "FIRES" if alert in outcome.before else "silent"
            after = f"{outcome.after_s[alert]:.1f}" if alert in outcome.after_s else "NEVER"
            table.add_row(scenario.__name__.replace("_", " "), alert, before, after, others)
    Console().print(table)
    early = {alert for outcome in outcomes.values() for alert in outcome.before}
    never = {alert for one, alerts in wanted.items() for alert in alerts if alert not in outcomes[one].after_s}
    print(f"fired before a cause: {sorted(early) or 'none'}; did not fire after it: {sorted(never) or 'none'}")
    return 1 if early or never else 0


def _parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--faster", type=float, default=30, help="by what durations are divided")
    parser.add_argument("--healthy-s", type=float, default=12, help="how long all is well before the cause comes")
    parser.add_argument("--longest-s", type=float, default=150, help="an alert that has not fired by then never does")
    parser.add_argument("--at-once", type=int, default=4, help="causes that are tried at the same time")
    parser.add_argument("--only", nargs="+", metavar="ALERT", help="those that cause these alerts")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
