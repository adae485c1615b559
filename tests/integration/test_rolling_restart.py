"""Two real services behind a real HAProxy with the configuration of deploy/haproxy, under load: an update, a drained
node and a rolling restart cost no request, and the death of a replica those that it was answering.
"""

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from loadtest.rolling_restart import Deployment, deployed, drain_node, kill_one, loaded, restart_all, update_all
from loadtest.servers import HAPROXY_CONFIGURATION, free_port, haproxy_server, rerankd_server, wait_until_ready
from rerankd.tools.benchmark.workload import Shape
from tests.registry_files import write_registry
from tests.requirements import require_program

pytestmark = pytest.mark.slow

_CLIENTS = 3


@pytest.fixture(scope="module")
def deployment(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    require_program("haproxy")
    registry = write_registry(tmp_path_factory.mktemp("registry"), [{"name": "tiny", "path": tiny_model}])
    with deployed(registry, shutdown_delay_s=8) as running:
        yield running


def test_the_log_names_the_client_behind_the_load_balancer(tiny_model: Path, tmp_path: Path) -> None:
    require_program("haproxy")
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    with ExitStack() as stack:
        server = stack.enter_context(
            rerankd_server(tmp_path, registry, RERANKD_TRUSTED_PROXIES="127.0.0.1", RERANKD_LOG_FORMAT="json")
        )
        wait_until_ready(server)  # or the load balancer's first check takes it out
        proxy = stack.enter_context(haproxy_server(tmp_path, [server.port]))
        client = stack.enter_context(httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.7")))
        lies = {"X-Forwarded-For": "1.2.3.4"}
        assert client.get(f"{proxy.url}/v1/models", headers=lies, timeout=30).status_code == 200
        assert client.get(f"{server.url}/health", timeout=30).status_code == 200
        server.process.terminate()
        server.process.wait(timeout=30)
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    clients = [line["client"] for line in lines if line.get("path") == "/v1/models"]
    assert clients == ["127.0.0.7"]


@pytest.mark.parametrize("change", [update_all, drain_node, restart_all])
async def test_a_planned_change_costs_no_request(deployment: Deployment, change: Callable[[Deployment], None]) -> None:
    async with loaded(deployment, Shape((5,)), clients=_CLIENTS) as requests:
        await asyncio.to_thread(change, deployment)
    assert len(requests) > 50
    assert [request for request in requests if request.failed] == []


async def test_a_killed_replica_costs_the_requests_that_it_was_answering(deployment: Deployment) -> None:
    async with loaded(deployment, Shape((5,)), clients=_CLIENTS) as requests:
        await asyncio.sleep(1)
        died = await asyncio.to_thread(kill_one, deployment)
    failed = [request for request in requests if request.failed]
    assert len(requests) > 50
    assert len(failed) <= _CLIENTS, "a client has one request at a time"
    assert all(request.at <= died for request in failed), failed


def test_haproxy_takes_the_configuration_as_it_is() -> None:
    checked = subprocess.run(
        [require_program("haproxy"), "-c", "-f", HAPROXY_CONFIGURATION], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_nginx_takes_the_configuration_of_the_guide(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    (upstream, location) = re.findall(
        r"^    (upstream rerankd \{\n.*?^    \}|location / \{\n.*?^    \})", guide, re.M | re.S
    )
    server = f"server {{ listen 127.0.0.1:{free_port()}; {location} }}"
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(f"pid {tmp_path}/pid; events {{}} http {{ {upstream} {server} }}", encoding="utf-8")
    command = [require_program("nginx"), "-t", "-p", str(tmp_path), "-e", "stderr", "-c", str(configuration)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
