"""A Ray cluster of several nodes on this machine, for load tests and tests, and the service on it."""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import ray
from ray import serve
from ray._private import utils as ray_utils
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from loadtest import device_engine
from loadtest.servers import free_port
from rerankd.serving.ray.application import build
from rerankd.serving.ray.front import Front
from rerankd.serving.ray.options import Options
from rerankd.serving.ray.replica import Replica

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STORE_BYTES: Final = 100 * 2**20
# On a busy machine Ray's own time limits of a start are sometimes too short.
_STARTS: Final = 3
# Each worker node has one of each, so that it gets one replica, and one actor that ranks files.
SLOT: Final = "slot"
RANK: Final = "rank"


@dataclass(frozen=True, slots=True)
class Nodes:
    """A head without replicas, and worker nodes with a slot each."""

    cluster: Cluster
    workers: list[Any]

    def add(self) -> None:
        self.workers.append(_started(lambda: self.cluster.add_node(**_node(num_cpus=2, resources={SLOT: 1, RANK: 1}))))

    def kill(self, node_id: str | None = None) -> None:
        """As when a machine loses power: nothing on it ends in an orderly way. Without an id the first node."""
        (node,) = [node for node in self.workers if node_id in (None, node.node_id)][:1]
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def local_cluster(workers: int) -> Iterator[Nodes]:
    """A head node and as many worker nodes; this process is connected to them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    # Without packages for a dashboard, Ray starts in a third of the CPU time.
    ray_utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    cluster: Cluster = _started(
        lambda: Cluster(initialize_head=True, head_node_args=_node(num_cpus=2, include_dashboard=False))
    )
    nodes = Nodes(cluster, [])
    try:
        for _ in range(workers):
            nodes.add()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


def _node(**options: object) -> dict[str, Any]:
    return {"object_store_memory": _STORE_BYTES, **options}


def _started(start: Callable[[], T]) -> T:
    for attempt in range(1, _STARTS + 1):
        try:
            return start()
        except Exception:
            if attempt == _STARTS:
                raise
            logger.warning("a node of Ray did not start in time and is started again", exc_info=True)
    raise AssertionError("the loop returns or raises")


class DeviceReplica(Replica):
    """A replica whose registry may name the engine `device`."""

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: dict[str, Any], models: Collection[str]
    ) -> None:
        device_engine.install()
        await super().__init__(settings, models)

    async def node(self) -> str:
        """Where it runs."""
        return str(ray.get_runtime_context().get_node_id())


class DeviceFront(Front):
    """A front whose registry may name it too."""

    def __init__(self, settings: dict[str, Any], *deployments: Mapping[str, Any]) -> None:
        device_engine.install()
        super().__init__(settings, *deployments)


@contextmanager
def served(settings: Mapping[str, Any], deployments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The URL of the service on the cluster, ready; the engine `device` may be used."""
    device_engine.install()
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        options = Options.model_validate({"settings": settings, "deployments": deployments, "front": {"num_cpus": 0.5}})
        serve.run(build(options, front=DeviceFront, replica=DeviceReplica), name="rerankd")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def nodes_of_replicas(name: str = "models") -> list[str]:
    """The ids of the nodes on which replicas of a deployment run."""
    found: list[str] = serve.get_deployment_handle(name, "rerankd").broadcast("node").results()
    return found


def wait_for_other_nodes(lost: str, *, replicas: int, timeout_s: float = 120.0) -> None:
    """Wait until as many replicas run, and none on the node that was lost.

    Raises:
        TimeoutError: they do not.
    """
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        with suppress(RayError):  # it is not known to be lost yet
            nodes = nodes_of_replicas()
            if len(nodes) == replicas and lost not in nodes:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{replicas} replicas do not run on other nodes than {lost}")
