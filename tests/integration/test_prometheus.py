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

from loadtest.alerts import CAUSES, a_replica_is_killed, accelerated, tried
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
    (found,) = job.pop("dns_sd_configs")
    assert (found["names"], found["port"]) == (["rerankd"], 8000)
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
    assert "firing" not in {rule["state"] for rule in rules if rule["type"] == "alerting"}


# These show what did not happen here.
_MAY_BE_EMPTY = {"GPU memory", "Fallbacks", "Fused requests", "Answers that abstain", "Lines of jobs", "Jobs"}


def test_every_panel_of_the_dashboard_shows_something(service: Server, prometheus: httpx.Client) -> None:
    httpx.post(f"{service.url}/v2/rerank", json=_QUESTION, timeout=30)
    assert _found(prometheus, "rate(rerank_batch_pairs_count[1m]) > 0 and on () rate(rerank_requests_total[1m])")
    dashboard = json.loads((_DEPLOY / "grafana" / "dashboards" / "rerankd.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m")
            expression = expression.replace("$model", ".*").replace("$instance", ".*")
            answered = _ask(prometheus, "query", query=expression)["result"]
            assert answered or panel["title"] in _MAY_BE_EMPTY, f"{panel['title']}: {expression}"


# One sample a minute for seven hours, in promtool's notation.
_HEALTHY = {
    "up": "1x420",
    "process_start_time_seconds": "1000x420",
    "rerank_model_ready": "1x420",
    "rerank_workers": "2x420",
    "rerank_queue_tokens": "100x420",
    "rerank_queue_limit_tokens": "1000x420",
    "rerank_pass_duration_seconds_sum": "0+60x420",
    "rerank_pass_duration_seconds_count": "0+600x420",
    'rerank_requests_total{status="200"}': "0+100x420",
    'rerank_requests_total{status="500"}': "0x420",
    'rerank_request_duration_seconds_bucket{le="2.5"}': "0+100x420",
    "rerank_request_duration_seconds_count": "0+100x420",
    "rerank_shed_total": "0x420",
    "rerank_deadline_missed_total": "0x420",
    "rerank_threads_given_up_total": "0x420",
    "rerank_failed_batches_total": "0x420",
    "rerank_cache_errors_total": "0x420",
    "rerank_log_lines_dropped_total": "0x420",
}
_FAILED = 'rerank_requests_total{status="500"}'
_IN_TIME = 'rerank_request_duration_seconds_bucket{le="2.5"}'

# For each alert what is wrong when it fires, and what is almost so when nothing fires.
_SYMPTOMS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "RerankdDown": ({"up": "1x418 0x2"}, {"up": "1x419 0x1"}),
    "RerankdGone": ({"up": "1x410 stale"}, {"up": "1x419 stale"}),
    "RerankdRestarts": (
        {"process_start_time_seconds": "1000x380 2000x10 3000x10 4000x10 5000x10"},
        {"process_start_time_seconds": "1000x380 2000x10 3000x10 4000x20"},
    ),
    "RerankModelUncertified": ({"rerank_model_certified": "1x400 0x20"}, {"rerank_model_certified": "1x417 0x3"}),
    "RerankRemoteAway": ({"rerank_remote_up": "1x400 0x20"}, {"rerank_remote_up": "1x417 0x3"}),
    "RerankModelNotReady": ({"rerank_model_ready": "1x400 0x20"}, {"rerank_model_ready": "1x417 0x3"}),
    # the last hour fails: 2 % of the requests are twenty times the budget, 1 % are ten times
    "RerankErrorBudgetBurnsFast": ({_FAILED: "0x360 0+2x60"}, {_FAILED: "0x360 0+1x60"}),
    "RerankErrorBudgetBurnsSlowly": ({_FAILED: "0+0.7x420"}, {_FAILED: "0+0.5x420"}),
    "RerankLatencyBudgetBurnsFast": (
        {_IN_TIME: "0+100x360 36080+80x60"},
        {_IN_TIME: "0+100x360 36090+90x60"},
    ),
    "RerankLatencyBudgetBurnsSlowly": ({_IN_TIME: "0+93x420"}, {_IN_TIME: "0+95x420"}),
    "RerankDeadlinesMissed": (
        {"rerank_deadline_missed_total": "0+1x420"},
        {"rerank_deadline_missed_total": "0+0.4x420"},
    ),
    "RerankRequestsShed": ({"rerank_shed_total": "0+10x420"}, {"rerank_shed_total": "0+4x420"}),
    "RerankQueueNearlyFull": ({"rerank_queue_tokens": "900x420"}, {"rerank_queue_tokens": "700x420"}),
    "RerankBusy": (
        {"rerank_pass_duration_seconds_sum": "0+118x420"},
        {"rerank_pass_duration_seconds_sum": "0+110x420"},
    ),
    "RerankEngineStuck": (
        {"rerank_pass_duration_seconds_count": "0+600x410 246000x10"},
        {"rerank_pass_duration_seconds_count": "0+600x410 246000x10", "rerank_queue_tokens": "100x410 0x10"},
    ),
    "RerankThreadsGivenUp": (
        {"rerank_threads_given_up_total": "0x400 1x20"},
        {"rerank_threads_given_up_total": "0x100 1x320"},
    ),
    "RerankBatchesFail": (
        {"rerank_failed_batches_total": "0+1x420"},
        {"rerank_failed_batches_total": "0x415 1x5"},
    ),
    "RerankLogLinesDropped": (
        {"rerank_log_lines_dropped_total": "0+5x420"},
        {"rerank_log_lines_dropped_total": "0x418 5x2"},
    ),
    "RerankCacheErrors": ({"rerank_cache_errors_total": "0+2x420"}, {"rerank_cache_errors_total": "0x415 1x5"}),
}


@pytest.mark.parametrize("alert", _SYMPTOMS)
def test_each_alert_fires_at_its_symptom_and_no_other_does(alert: str, tmp_path: Path) -> None:
    _fires([alert], {**_HEALTHY, **_SYMPTOMS[alert][0]}, tmp_path)


@pytest.mark.parametrize("alert", _SYMPTOMS)
def test_each_alert_is_silent_when_its_symptom_is_almost_there(alert: str, tmp_path: Path) -> None:
    _fires([], {**_HEALTHY, **_SYMPTOMS[alert][1]}, tmp_path)


@pytest.mark.parametrize("status", ["429", "500", "503", "504"])
def test_one_request_of_a_quiet_service_that_is_refused_or_fails_fires_nothing(status: str, tmp_path: Path) -> None:
    quiet = {name: "0x420" for name in _HEALTHY if name.endswith(("_total", "_count", "_bucket", "_sum", "}"))}
    one = {
        'rerank_requests_total{status="200"}': "0x410 1x10",
        f'rerank_requests_total{{status="{status}"}}': "0x415 1x5",
        "rerank_request_duration_seconds_count": "0x410 1x5 2x5",
        "rerank_shed_total": "0x415 1x5",
        "rerank_queue_tokens": "0x420",
    }
    _fires([], {**_HEALTHY, **quiet, **one}, tmp_path)


def test_every_alert_has_its_symptom() -> None:
    groups = [group for path in _RULES for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    assert {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule} == _SYMPTOMS.keys()


def test_every_alert_has_a_cause_that_can_be_tried() -> None:
    """`python -m loadtest.alerts` tries them all, one of them is tried here."""
    assert sorted(alert for alerts in CAUSES.values() for alert in alerts) == sorted(_SYMPTOMS)


_FASTER = {"3m": 3, "5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60, "6h": 360}


def test_rules_are_accelerated_and_otherwise_the_same(tmp_path: Path) -> None:
    configuration = accelerated(tmp_path / "fast", 60)
    _promtool("check", "config", configuration)
    for path in _RULES:
        ours, fast = (yaml.safe_load(one.read_text()) for one in (path, configuration.parent / "rules" / path.name))
        for group, faster in zip(ours["groups"], fast["groups"], strict=True):
            for rule, other in zip(group["rules"], faster["rules"], strict=True):
                for duration, seconds in _FASTER.items():
                    other["expr"] = other["expr"].replace(f"[{seconds}000ms]", f"[{duration}]")
                assert rule.pop("for", "0m").rstrip("m") == other.pop("for", "0000ms").removesuffix("000ms")
                assert rule == other


@pytest.mark.slow
def test_an_alert_fires_after_its_cause_and_not_before() -> None:
    require_program("prometheus")
    outcome = tried(a_replica_is_killed, ["RerankdDown"], faster=30, healthy_s=3, longest_s=60)
    assert not outcome.before
    assert "RerankdDown" in outcome.after_s


# What each rule records of the healthy service, with these series beside it.
_MORE = {
    'rerank_request_duration_seconds_bucket{le="+Inf"}': "0+100x420",
    "rerank_batch_tokens_sum": "0+6000x420",
    'rerank_key_tokens_total{key="ours"}': "0+600x420",
    "rerank_queue_seconds": "3x420",
    'rerank_cache_pairs_total{result="hit"}': "0+30x420",
    'rerank_cache_pairs_total{result="miss"}': "0+10x420",
}
_RECORDED = {
    'model:rerank_requests:rate5m{model="m"}': 100 / 60,
    'model:rerank_requests_failed:ratio_rate5m{model="m"}': 0,
    'model:rerank_request_duration_seconds:p95_5m{model="m"}': 0.95 * 2.5,
    'model:rerank_tokens:rate5m{model="m"}': 100,
    'key:rerank_tokens:rate5m{key="ours"}': 10,
    'rerank:utilization:rate5m{instance="a", model="m"}': 0.5,
    'rerank:queue_seconds{instance="a"}': 3,
    "rerank:cache_hits:ratio_rate5m": 0.75,
}


def test_each_rule_records_what_its_name_says(tmp_path: Path) -> None:
    groups = [group for path in _RULES for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    names = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    assert {name.partition("{")[0] for name in _RECORDED} == names
    asked = [
        {
            "expr": f"abs({name.partition('{')[0]} - {value}) < bool 0.00001",
            "eval_time": "7h",
            "exp_samples": [{"labels": "{" * ("{" in name) + name.partition("{")[2], "value": 1}],
        }
        for name, value in _RECORDED.items()
    ]
    _evaluate({**_HEALTHY, **_MORE}, asked, tmp_path)


def _fires(alerts: list[str], series: dict[str, str], folder: Path) -> None:
    """See that after seven hours exactly these alerts fire."""
    firing = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "7h",
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
    }
    _evaluate(series, [firing], folder)


def _evaluate(series: dict[str, str], asked: list[dict[str, Any]], folder: Path) -> None:
    """Let promtool evaluate the rules over the series."""
    scenario = {
        "rule_files": [str(path) for path in _RULES],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": _labelled(name), "values": values} for name, values in series.items()],
                "promql_expr_test": asked,
            }
        ],
    }
    path = folder / "scenario.yml"
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
