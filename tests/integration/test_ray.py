"""The service on a real Ray cluster of several nodes: what it answers, and that a node's death loses nothing.

One cluster serves all tests of this file, which run in their order: the last two kill a node each.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.registry_files import write_registry
from tests.requirements import require_package

require_package("ray.serve")

from loadtest import device_engine, ray_rank  # noqa: E402 - behind the check
from loadtest import ray as experiment  # noqa: E402
from loadtest.ray_cluster import SLOT, Nodes, local_cluster, nodes_of_replicas, served  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

_KEY = {"Authorization": "Bearer secret-a"}
_BODIES = experiment.bodies(24)
# Well within the limit of a test, whose own error would not end what runs in the background.
_LONGEST_S = 90
_MODEL = Path(__file__).parents[1] / "data" / "tiny-bert"
_OTHER = {"name": "other", "path": _MODEL, "scorer": "cross-encoder", "engine": "onnx", "workers": 1}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with local_cluster(3) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny model twice: on the engine that waits as a device does, on two nodes, and on the head by itself."""
    folder = tmp_path_factory.mktemp("ray")
    device = {"engine": "device", "engine_options": {"pass_s": 0.05, "pass_pairs": 8}}
    entries = [
        {"name": "tiny", "path": _MODEL, "scorer": "cross-encoder", "aliases": ["rerank-v3"], **device},
        _OTHER,
    ]
    device_engine.install()
    yield write_registry(folder, entries)
    device_engine.remove()


@pytest.fixture(scope="module")
def url(nodes: Nodes, registry: Path) -> Iterator[str]:
    keys = registry.parent / "keys.toml"
    keys.write_text('[[key]]\nname = "a"\nkey = "secret-a"\n', encoding="utf-8")
    keys.chmod(0o600)
    settings = {"registry": str(registry), "api_keys_file": str(keys), "log_level": "WARNING", "max_body_bytes": 65536}
    deployments: list[dict[str, Any]] = [
        {"name": "models", "models": ["tiny"], "max_replicas": 2, "num_cpus": 0.5, "wait_s": 0.2, "upscale_delay_s": 1},
        {"name": "others", "models": ["other"], "num_cpus": 0.5},
    ]
    deployments[0]["resources"] = {SLOT: 1}
    with served(settings, deployments) as url:
        yield url


def _post(url: str, path: str = "/v2/rerank", **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json={"query": "q", "documents": ["a b", "c"], **body}, headers=_KEY, timeout=60)


def test_models_of_all_deployments_are_served(url: str) -> None:
    ready = httpx.get(f"{url}/ready", timeout=60)
    assert (ready.status_code, set(ready.json()["models"])) == (200, {"tiny", "other"})
    models = httpx.get(f"{url}/v1/models", headers=_KEY, timeout=60).json()["data"]
    assert {model["id"] for model in models} == {"tiny", "other"}
    for name in ("tiny", "other"):
        assert httpx.get(f"{url}/v1/models/{name}", headers=_KEY, timeout=60).json()["id"] == name
    assert httpx.get(f"{url}/health", timeout=60).json()["status"] == "ok"


@pytest.mark.parametrize(("asked", "model"), [(None, "tiny"), ("rerank-v3", "tiny"), ("other", "other")])
def test_a_request_reaches_the_deployment_of_its_model(url: str, asked: str | None, model: str) -> None:
    answer = _post(url, "/v1/rerank", **({"model": asked} if asked else {}))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_errors_are_those_of_the_service(url: str) -> None:
    assert httpx.post(f"{url}/rerank", json={"query": "q", "documents": ["a"]}, timeout=60).status_code == 401
    assert _post(url, model="nope").status_code == 404
    assert "unknown model 'nope'" in _post(url, model="nope").json()["message"]
    assert _post(url, query=1).status_code == 400
    assert _post(url, documents=["x" * 70_000]).status_code == 413
    broken = httpx.post(f"{url}/v2/rerank", content="{", headers=_KEY, timeout=60)
    assert (broken.status_code, "not valid JSON" in broken.json()["message"]) == (400, True)
    admin = httpx.get(f"{url}/admin/models", headers=_KEY, timeout=60)
    assert (admin.status_code, "serve deploy" in admin.json()["message"]) == (404, True)
    for jobs in (httpx.get(f"{url}/v1/batches", timeout=60), httpx.post(f"{url}/v1/files", content=b"x", timeout=60)):
        assert (jobs.status_code, "rank --ray" in jobs.json()["message"]) == (501, True)
    assert httpx.get(f"{url}/nowhere", headers=_KEY, timeout=60).status_code == 404


def test_a_query_comes_back_to_the_replica_that_has_its_scores(url: str) -> None:
    for _ in range(3):
        for number in range(8):
            assert _post(url, query=f"again {number}", documents=["a", "b"]).status_code == 200
    looked_up: Counter[str] = Counter()
    replicas = set()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            if sample.name == "rerank_cache_pairs_total":
                looked_up[sample.labels["result"]] += int(sample.value)
            if sample.name == "rerank_model_ready":
                replicas.add(sample.labels["replica"])
    assert looked_up["hit"] >= 2 * 16, "each query but the first time"
    assert len(replicas) == 2, "every replica of every deployment tells its metrics"


async def test_a_replica_is_added_when_work_waits(url: str, nodes: Nodes, registry: Path) -> None:
    assert len(await asyncio.to_thread(nodes_of_replicas)) == 1
    new = experiment.bodies(600)  # half a minute of passes: what is in the cache is no work
    scores = await experiment.expected(registry, new)
    async with experiment.loaded(url, new, scores, clients=12, headers=_KEY) as sent:
        async with asyncio.timeout(_LONGEST_S):
            while len(set(await asyncio.to_thread(nodes_of_replicas))) < 2:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.2)
        await _answers(sent, len(sent) + 12)
    assert Counter(one.outcome for one in sent) == {"right": len(sent)}


def test_a_file_is_ranked_as_without_a_cluster(nodes: Nodes, tmp_path: Path) -> None:
    source = tmp_path / "requests.jsonl"
    lines = [json.dumps({"id": one, **body, "top_n": 3}) for one, body in enumerate(_BODIES)]
    source.write_text("\n".join([*lines, "", '{"id": "last", "query": "q", "documents": ["a"]}']), encoding="utf-8")
    plain = write_registry(tmp_path, [_OTHER])
    options = ["--model", "other", "--registry", str(plain)]
    on_ray = ["--ray", "--ray-address", nodes.cluster.address]
    on_ray += ["--actors", "1", "--num-cpus", "0.5", "--chunk-mb", "0.001"]
    outputs = []
    for name, extra in (("here.jsonl", []), ("ray.jsonl", on_ray)):
        command = [sys.executable, "-m", "rerankd", "rank", str(source), str(tmp_path / name), *options, *extra]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
        outputs.append((tmp_path / name).read_text(encoding="utf-8"))
    assert outputs[0] == outputs[1]
    assert len(outputs[1].splitlines()) == len(_BODIES) + 1
    assert not list(tmp_path.glob("*.parts")), "nothing is left behind"


async def test_a_node_that_dies_under_load_loses_no_request(url: str, nodes: Nodes, registry: Path) -> None:
    scores = await experiment.expected(registry, _BODIES)
    node, other = await asyncio.to_thread(nodes_of_replicas)
    assert node != other
    async with experiment.loaded(url, _BODIES, scores, clients=6, headers=_KEY) as sent:
        await _answers(sent, 20)
        killed = perf_counter()
        await asyncio.to_thread(nodes.kill, node)
        await _answers(sent, len(sent) + 20)
    assert Counter(one.outcome for one in sent) == {"right": len(sent)}
    assert any(one.at < killed < one.ended for one in sent)


async def _answers(sent: list[experiment.Sent], number: int) -> None:
    async with asyncio.timeout(_LONGEST_S):
        while len(sent) < number:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)


def test_a_file_whose_driver_and_a_node_die_has_each_result_once(url: str, nodes: Nodes, tmp_path: Path) -> None:
    source, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    pairs = ray_rank.write_requests(source, 40_000)
    claims = ray_rank.rank_with_kills(source, output, nodes, chunk_bytes=25_000)
    claims += ray_rank.check(output, pairs // 100)
    assert [claim for claim in claims if not claim.holds] == []
