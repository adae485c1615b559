"""Real Redis servers in every way that they are set up: a cluster, Sentinels with a replica, TLS with a private CA."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from loadtest.servers import Server, free_port, running, wait
from tests.requirements import require_program
from tests.servers import redis_server

_SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: the CA's certificate, and a certificate with its key that it signed for 127.0.0.1."""

    ca: Path
    cert: Path
    key: Path


@contextmanager
def redis_cluster(folder: Path, *options: str, masters: int = 3) -> Iterator[list[Server]]:
    """Masters without replicas that share all slots evenly, once each knows of all."""
    with ExitStack() as stack:
        servers = [stack.enter_context(_cluster_node(folder / f"node{n}", *options)) for n in range(masters)]
        clients = [stack.enter_context(Redis(port=server.port)) for server in servers]
        share = -(-_SLOTS // masters)
        for number, client in enumerate(clients):
            first, last = number * share, min(_SLOTS, (number + 1) * share) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, _bus_port(clients[0]))
        for server, client in zip(servers, clients, strict=True):
            wait(server, lambda client=client: _is_whole(client, masters))  # type: ignore[misc]
        yield servers


@contextmanager
def _cluster_node(folder: Path, *options: str) -> Iterator[Server]:
    folder.mkdir()
    cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(free_port()))
    with redis_server(folder, *cluster, *options) as server:
        yield server


def _bus_port(client: Redis) -> int:
    return int(str(client.config_get("cluster-port")["cluster-port"]))


def _is_whole(client: Redis, masters: int) -> bool:
    told = bytes(client.execute_command("CLUSTER", "INFO"))
    return b"cluster_state:ok" in told and b"cluster_known_nodes:%d\r" % masters in told


@dataclass(frozen=True, slots=True)
class Watched:
    """A master of the name `scores`, its replica, and the Sentinels that watch it."""

    master: Server
    replica: Server
    sentinels: Sequence[Server]

    @property
    def url(self) -> str:
        """Without parameters."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/scores/0"


@contextmanager
def redis_sentinels(folder: Path, *, sentinels: int = 2, password: str = "") -> Iterator[Watched]:
    """Once the Sentinels know of one another and of the replica. With a password, Redis and Sentinels ask for it."""
    (folder / "master").mkdir()
    (folder / "replica").mkdir()
    with ExitStack() as stack:
        master = stack.enter_context(redis_server(folder / "master"))
        following = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        replica = stack.enter_context(redis_server(folder / "replica", *following))
        if password:
            _ask_for(password, master, replica)
        watching = [
            stack.enter_context(_sentinel(folder / f"sentinel{n}", master.port, password)) for n in range(sentinels)
        ]
        for sentinel in watching:
            wait(sentinel, lambda sentinel=sentinel: _knows_all(sentinel, sentinels, password))  # type: ignore[misc]
        yield Watched(master, replica, watching)


def _ask_for(password: str, *servers: Server) -> None:
    for server in servers:
        with Redis(port=server.port) as client:
            client.config_set("masterauth", password)
            client.config_set("requirepass", password)


@contextmanager
def _sentinel(folder: Path, master: int, password: str) -> Iterator[Server]:
    folder.mkdir()
    port = free_port()
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {folder}",
        f"sentinel monitor scores 127.0.0.1 {master} 1",
        "sentinel down-after-milliseconds scores 300",
        "sentinel failover-timeout scores 2000",
    ]
    if password:
        lines += [
            f"requirepass {password}",
            f"sentinel sentinel-pass {password}",
            f"sentinel auth-pass scores {password}",
        ]
    (folder / "sentinel.conf").write_text("\n".join(lines), encoding="utf-8")
    command = [require_program("redis-server"), str(folder / "sentinel.conf"), "--sentinel"]
    with running(command, port, folder / "log", {}) as server:
        yield server


def _knows_all(sentinel: Server, sentinels: int, password: str) -> bool:
    try:
        with Redis(port=sentinel.port, password=password or None) as client:
            state = client.sentinel_masters()["scores"]
    except RedisError:
        return False
    return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == sentinels - 1)


@contextmanager
def tls_redis(folder: Path, certificates: Certificates, *, asks_clients: bool = False) -> Iterator[Server]:
    """A Redis whose plain port is for waiting; its TLS port is `tls_port` of it."""
    files = (
        "--tls-ca-cert-file",
        certificates.ca,
        "--tls-cert-file",
        certificates.cert,
        "--tls-key-file",
        certificates.key,
    )
    tls = free_port()
    options = ("--tls-port", str(tls), "--tls-auth-clients", "yes" if asks_clients else "no", *map(str, files))
    with redis_server(folder, *options) as server:
        yield Server(tls, server.process, server.log)


def certificates(folder: Path) -> Certificates:
    """Made with the program openssl, for an hour."""
    openssl = require_program("openssl")
    made = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    new = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    authority = ["-keyout", folder / "ca.key", "-out", made.ca, "-subj", "/CN=our own CA"]
    signed = ["-keyout", made.key, "-out", made.cert, "-subj", "/CN=redis", "-CA", made.ca, "-CAkey", folder / "ca.key"]
    for arguments in (authority, [*signed, "-addext", "subjectAltName=IP:127.0.0.1"]):
        subprocess.run([*new, *map(str, arguments)], check=True, capture_output=True)
    return made
