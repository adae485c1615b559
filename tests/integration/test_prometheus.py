"""A real Prometheus with the deployment's own configuration scrapes a real service and evaluates our expressions."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.registry_files import write_registry
from tests.requirements import require_program
from tests.servers import Server, free_port, rerankd_server, wait_until_ready

pytestmark = pytest.mark.prometheus

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_CONFIGURATION = _DEPLOY / "prometheus" / "prometheus.yml"
_RULES = sorted((_CONFIGURATION.parent / "rules").glob("*.yml"))
_QUESTION = {"query": "capital of France", "documents": ["Paris is the capital of France.", "Water is wet."]}


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    registry = write_registry(folder, [{"name": "tiny", "path": tiny_model}])
    with rerankd_server(folder, registry, RERANKD_CACHE_URL="memory://") as server:
        wait_until_ready(server)
        yield server


@pytest.fixture(scope="module")
def prometheus(service: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Asks a Prometheus that scrapes the service twice a second."""
    program = require_program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = _adapted(folder / "etc", target=f"127.0.0.1:{service.port}")
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
    with (
        _running([*command, f"--web.listen-address={address}"], log=folder / "log"),
        httpx.Client(base_url=f"http://{address}/api/v1", timeout=10) as client,
    ):
        yield client


def _adapted(folder: Path, *, target: str) -> Path:
    """The deployment's configuration with another target and a shorter interval."""
    shutil.copytree(_CONFIGURATION.parent, folder)
    configuration = yaml.safe_load(_CONFIGURATION.read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    (job,) = configuration["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["rerankd:8000"]}]
    job["static_configs"] = [{"targets": [target]}]
    path = folder / _CONFIGURATION.name
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return path


@contextmanager
def _running(command: list[str], *, log: Path) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield
        finally:
            process.terminate()


def _found(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """The series of an expression, once there are any; empty after 30 s without."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            result: list[dict[str, Any]] = _ask(prometheus, "query", query=expression)["result"]
        except httpx.TransportError:
            result = []
        if result:
            return result
        time.sleep(0.1)
    return []


def _ask(prometheus: httpx.Client, path: str, **parameters: str) -> Any:
    answer = prometheus.get(path, params=parameters)
    if answer.status_code == 503:
        return {"result": []}  # starting
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_the_service_is_scraped_as_up(prometheus: httpx.Client) -> None:
    assert _found(prometheus, 'up{job="rerankd"} == 1')
    (target,) = _ask(prometheus, "targets", state="active")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_a_request_is_counted_with_its_model_dialect_and_status(service: Server, prometheus: httpx.Client) -> None:
    assert httpx.post(f"{service.url}/v2/rerank", json=_QUESTION, timeout=30).status_code == 200
    (series,) = _found(prometheus, "rerank_requests_total")
    labels = {name: series["metric"][name] for name in ("model", "dialect", "status")}
    assert labels == {"model": "tiny", "dialect": "cohere-v2", "status": "200"}


def test_every_alert_is_evaluated_and_none_fires_on_a_healthy_service(prometheus: httpx.Client) -> None:
    assert _found(prometheus, 'up{job="rerankd"} == 1')
    end = time.monotonic() + 30
    while True:
        rules = [rule for group in _ask(prometheus, "rules")["groups"] for rule in group["rules"]]
        if (rules and all(rule["health"] == "ok" for rule in rules)) or time.monotonic() > end:
            break
        time.sleep(0.1)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert "firing" not in {rule["state"] for rule in rules}


def test_every_panel_of_the_dashboard_is_a_query_that_prometheus_understands(prometheus: httpx.Client) -> None:
    assert _found(prometheus, 'up{job="rerankd"} == 1')
    dashboard = json.loads((_DEPLOY / "grafana" / "dashboards" / "rerankd.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m")
            expression = expression.replace("$model", ".*").replace("$instance", ".*")
            _ask(prometheus, "query", query=expression)


# Four samples a minute for 15 minutes, in promtool's notation.
_SYMPTOMS = {
    None: {
        "up": "1x60",
        "rerank_model_ready": "1x60",
        "rerank_queue_tokens": "100x60",
        "rerank_batch_pairs_count": "0+1x60",
        'rerank_requests_total{status="200"}': "0+9x60",
        'rerank_requests_total{status="429"}': "0+9x60",
        "rerank_failed_batches_total": "0x60",
    },
    "RerankdDown": {"up": "1x50 0x10"},
    "RerankModelNotReady": {"rerank_model_ready": "1x30 0x30"},
    "RerankEngineStuck": {"rerank_queue_tokens": "100x60", "rerank_batch_pairs_count": "0+1x30 30x30"},
    "RerankErrors": {'rerank_requests_total{status="200"}': "0+9x60", 'rerank_requests_total{status="500"}': "0+1x60"},
    "RerankBatchesFail": {"rerank_failed_batches_total": "_x50 1x10"},
    "RerankQueueGrows": {"rerank_queue_tokens": "100+10x60", "rerank_batch_pairs_count": "0+1x60"},
    "RerankRequestsShed": {'rerank_shed_total{reason="overloaded"}': "0+1x60"},
    "RerankCacheErrors": {'rerank_cache_errors_total{operation="get"}': "0+1x60"},
}


@pytest.mark.parametrize(("alert", "series"), _SYMPTOMS.items())
def test_each_alert_fires_at_its_symptom_and_no_other_does(
    alert: str | None, series: dict[str, str], tmp_path: Path
) -> None:
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    scenario = {
        "rule_files": [str(path) for path in _RULES],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": _labelled(name), "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "15m",
                        "exp_samples": firing,
                    }
                ],
            }
        ],
    }
    path = tmp_path / "scenario.yml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    _promtool("test", "rules", path)


def _labelled(series: str) -> str:
    """The series as one target with one model gives it."""
    name, _, labels = series.rstrip("}").partition("{")
    return f'{name}{{{labels}{"," * bool(labels)}job="rerankd",instance="a",model="m"}}'


@pytest.mark.parametrize(("what", "path"), [("config", _CONFIGURATION), *(("rules", path) for path in _RULES)])
def test_promtool_finds_nothing_wrong(what: str, path: Path) -> None:
    _promtool("check", what, path)


def _promtool(*command: str | Path) -> None:
    done = subprocess.run(
        [require_program("promtool"), *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
