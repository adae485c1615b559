"""What the service decides on Ray, without a cluster: routing, scaling, owners of models, joined metrics."""

import asyncio
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as Counted
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from tests.registry_files import write_registry
from tests.requirements import require_package

require_package("ray.serve")

from ray.serve.schema import ServeDeploySchema  # noqa: E402

from rerankd.config.registry import Registry, read_registry  # noqa: E402 - behind the check
from rerankd.config.settings import Settings  # noqa: E402
from rerankd.config.variables import name_problems  # noqa: E402
from rerankd.errors import ConfigError  # noqa: E402
from rerankd.serving.ray.exposition import merged  # noqa: E402
from rerankd.serving.ray.front import key_of, owners, query_in  # noqa: E402
from rerankd.serving.ray.messages import HttpCall, answer_of  # noqa: E402
from rerankd.serving.ray.options import Options  # noqa: E402
from rerankd.serving.ray.routing import ordered  # noqa: E402
from rerankd.serving.ray.scaling import WaitingWork  # noqa: E402

_KEYS = [key_of("m", f"query {number}") for number in range(1000)]


def test_queries_are_spread_and_each_keeps_its_replica() -> None:
    idle = dict.fromkeys("abcd", 0)
    firsts = [ordered(key, idle)[0] for key in _KEYS]
    assert firsts == [ordered(key, dict.fromkeys("dcba", 0))[0] for key in _KEYS]
    assert all(150 < count < 350 for count in Counter(firsts).values())


def test_a_replica_that_goes_takes_only_its_own_queries_along() -> None:
    moved = [
        (before, ordered(key, dict.fromkeys("abc", 0))[0])
        for key in _KEYS
        if (before := ordered(key, dict.fromkeys("abcd", 0))[0]) != "d"
    ]
    assert all(before == after for before, after in moved)


@pytest.mark.parametrize(
    ("loads", "spared"),
    [
        pytest.param({"a": 5, "b": 0}, {"a"}, id="more than a fair share"),
        pytest.param({"a": 10, "b": 10}, set(), id="all alike"),
        pytest.param({"a": 1, "b": 0}, set(), id="one request is no imbalance"),
        pytest.param({"a": 0, "b": 0, "c": 9}, {"c"}, id="of three"),
    ],
)
def test_a_replica_with_more_than_its_share_is_asked_last(loads: dict[str, int], spared: set[str]) -> None:
    firsts = {ordered(key, loads)[0] for key in _KEYS}
    assert firsts == loads.keys() - spared
    assert all(set(ordered(key, loads)) == loads.keys() for key in _KEYS[:10])


def test_calls_without_a_query_have_no_key() -> None:
    assert key_of("m", None) == key_of("m", "") == key_of("m", 7) == b""
    assert key_of("m", "q") != key_of("n", "q")
    assert key_of("m", "\ud800")


@pytest.mark.parametrize(
    ("fields", "query"),
    [
        ({"query": "q"}, "q"),
        ({"query": {"text": "q"}}, "q"),
        ({"input": {"query": "q", "documents": []}}, "q"),
        ({"input": ["q"]}, None),
        ({}, None),
    ],
)
def test_the_query_is_found_in_the_bodies_of_dialects(fields: dict[str, Any], query: object) -> None:
    assert query_in(fields) == query


@pytest.mark.parametrize(
    ("waiting_s", "busy", "replicas"),
    [
        pytest.param(0.0, 0.0, 1, id="idle"),
        pytest.param(0.4, 0.69, 1, id="one keeps up"),
        pytest.param(3.2, 1.0, 4, id="work for four"),
        pytest.param(0.0, 2.8, 4, id="four that keep up, by computing most of the time"),
        pytest.param(0.0, 1.3, 2, id="two would keep up"),
    ],
)
def test_replicas_are_as_many_as_finish_in_time_and_are_not_always_busy(
    waiting_s: float, busy: float, replicas: int
) -> None:
    assert WaitingWork(wait_s=1.0, busy=0.7).replicas(waiting_s=waiting_s, busy=busy) == replicas


def _registry(folder: Path) -> Registry:
    entries = [
        {"name": name, "path": "m", "engine": "onnx", "scorer": "cross-encoder", "aliases": [f"{name}-v1"]}
        for name in ("a", "b", "c")
    ]
    return read_registry(write_registry(folder, entries))


def test_each_model_belongs_to_the_first_deployment_that_serves_it(tmp_path: Path) -> None:
    registry = _registry(tmp_path)
    assert owners(registry, {"x": ()}) == {"a": "x", "b": "x", "c": "x"}
    assert owners(registry, {"x": ("b-v1",), "y": ("b", "c")}) == {"a": "x", "b": "x", "c": "y"}
    with pytest.raises(ConfigError, match="unknown model nope"):
        owners(registry, {"x": ("nope",)})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"deployments": [{"name": "a"}, {"name": "a"}]}, "have the same name, a"),
        ({"deployments": [{"min_replicas": 3, "max_replicas": 2}]}, "less than min_replicas"),
        ({"deployments": []}, "at least 1"),
        ({"replicas": 2}, "Extra inputs"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Options.model_validate(options)


def test_metrics_of_replicas_become_one_exposition() -> None:
    texts = {}
    for replica, requests in (("x", 2), ("y", 3)):
        registry = CollectorRegistry()
        counter = Counted("requests_total", 'With "quotes", {braces} and # signs.', ["model"], registry=registry)
        counter.labels('odd "} name').inc(requests)
        Counted("plain_total", "No labels.", registry=registry).inc(requests)
        texts[replica] = generate_latest(registry)
    families = {family.name: family for family in text_string_to_metric_families(merged(texts).decode())}
    counts = {
        (sample.labels["replica"], sample.labels.get("model")): sample.value
        for name in ("requests", "plain")
        for sample in families[name].samples
        if sample.name.endswith("_total")
    }
    odd = 'odd "} name'
    assert counts == {("x", odd): 2, ("y", odd): 3, ("x", None): 2, ("y", None): 3}


async def test_an_application_gets_the_body_once_and_its_answer_is_collected() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert not message["more_body"]
        await send({"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": True})
        await send({"type": "http.response.body", "body": message["body"]})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.01)

    call = HttpCall.of({"type": "http", "path": "/p", "extensions": object()}).with_body(b"!", key=b"k")
    assert "extensions" not in call.scope
    answer = await answer_of(application, call)
    assert (answer.status, answer.headers, answer.body) == (201, [(b"a", b"b")], b"/p!")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "deploy" / "ray").glob("*.yaml")), ids=lambda p: p.name
)
def test_the_files_of_deploy_are_what_ray_and_the_service_take(path: Path) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    (application,) = schema.applications
    module, _, name = str(application.import_path).partition(":")
    assert callable(getattr(import_module(module), name))
    assert Options.model_validate(application.args).deployments
    variables = application.runtime_env["env_vars"]
    assert list(name_problems(variables, Settings.model_fields)) == []
    Settings(**{key.removeprefix("RERANKD_").lower(): value for key, value in variables.items()})
