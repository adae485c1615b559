"""From a registry to a model that answers, or to a clear reason why it does not; the others serve all the same."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, ScoreOptions, Terms
from rerankd.errors import ConfigError, ModelNotReady
from rerankd.serving.assembly import running_service
from rerankd.serving.model import Status
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry

_REQUEST: dict[str, Any] = {"query": "reranking", "documents": ["a document", "another document about reranking"]}


async def _reason(tmp_path: Path, model: Mapping[str, Any]) -> str:
    """Load a model beside a healthy one, see that the healthy one answers, and give the other one's reason."""
    healthy = {"name": "healthy", "path": Path(__file__).parents[1] / "data" / "tiny-bert"}
    registry = write_registry(tmp_path, [{"name": "ill", **model}, healthy])
    async with running_service(Settings(registry=registry), Silent()) as service:
        ill, _ = service.models
        await service.model_named("healthy").settled()
        result = await service.rerank(RerankRequest(**_REQUEST, model="healthy"))
        assert len(result.results) == 2
        with pytest.raises(ModelNotReady, match="'ill'"):
            await ill.settled()
        assert ill.status is Status.FAILED
        return ill.reason


def _copy(tiny_model: Path, target: Path) -> Path:
    return Path(shutil.copytree(tiny_model, target))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"path": "nowhere"}, "no model folder"),
        ({"path": "hub:not a name"}, "is not the name of a repository"),
        ({"path": ".", "scorer": "crystal-ball"}, "unknown scorer 'crystal-ball'; known: cross-encoder"),
        ({"path": "."}, "config.json"),
    ],
)
async def test_what_cannot_be_found_is_named(tmp_path: Path, model: dict[str, Any], reason: str) -> None:
    assert reason in await _reason(tmp_path, model)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"engine": "abacus"}, "unknown engine 'abacus'; known: onnx, openvino, torch-encoder"),
        ({"engine_options": {"threds": 2}}, "threds"),
        ({"engine_options": {"file": "other.onnx"}}, "other.onnx"),
        ({"engine_options": {"device": "cuda"}}, "CUDAExecutionProvider"),
        ({"engine_options": {"device": "gpu"}}, 'device must be "cpu", "cuda"'),
        ({"devices": ["cpu", "cuda:1"]}, "device 'cuda:1' needs CUDAExecutionProvider"),
        ({"devices": ["cpu"], "engine_options": {"device": "cpu"}}, "both choose the model's device"),
        ({"devices": ["cpu"], "engine": "openvino"}, "engine 'openvino' has no devices to choose from"),
        ({"options": {"activation": "relu"}}, "activation must be one of"),
        ({"max_length": 100_000}, "max_length = 100000"),
    ],
)
async def test_an_option_that_cannot_be_used_is_named(
    tmp_path: Path, tiny_model: Path, model: dict[str, Any], reason: str
) -> None:
    assert reason in await _reason(tmp_path, {"path": tiny_model, **model})


async def test_copies_on_several_devices_answer_as_one_model(tmp_path: Path, tiny_model: Path) -> None:
    one, two = {"name": "one", "path": tiny_model}, {"name": "two", "path": tiny_model, "devices": ["cpu", "cpu"]}
    registry = write_registry(tmp_path, [{**one, "workers": 1}, {**two, "workers": 1}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        for model in service.models:
            await model.settled()
        requests = [RerankRequest(**_REQUEST, model=name) for name in ("one", "two")]
        single, double = [await service.rerank(request) for request in requests]
        assert single.results == double.results
        details = service.model_named("two").details
        assert details["engine"] == service.model_named("one").details["engine"]


async def test_weights_that_miss_their_golden_scores_do_not_serve(tmp_path: Path, tiny_model: Path) -> None:
    folder = _copy(tiny_model, tmp_path / "drifted")
    golden = json.loads((folder / "golden.json").read_text())
    golden["pairs"][0]["logit"] += 1 + golden["tolerance"]
    (folder / "golden.json").write_text(json.dumps(golden))
    reason = await _reason(tmp_path, {"path": folder})
    assert "golden pair" in reason
    assert golden["pairs"][0]["query"] in reason


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"pairs": [{}], "tolerance": 1}', '{"pairs": 5}', '{"pairs": [], "tolerance": 1}']
)
async def test_a_broken_golden_file_is_named(tmp_path: Path, tiny_model: Path, content: str) -> None:
    folder = _copy(tiny_model, tmp_path / "broken")
    (folder / "golden.json").write_text(content)
    assert "golden.json" in await _reason(tmp_path, {"path": folder})


async def test_a_model_without_golden_pairs_serves_after_a_canary_without_reference(
    tmp_path: Path, tiny_model: Path
) -> None:
    folder = _copy(tiny_model, tmp_path / "plain")
    (folder / "golden.json").unlink()
    registry = write_registry(tmp_path, [{"name": "plain", "path": folder}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        await service.model_named(None).settled()
        assert service.model_named(None).status is Status.READY


async def test_a_request_while_the_model_loads_is_told_to_come_back(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "slow", "path": tiny_model}])
    async with running_service(Settings(registry=registry, loading_timeout_s=0), Silent()) as service:
        with pytest.raises(ModelNotReady, match="loading") as raised:
            await service.rerank(RerankRequest(**_REQUEST))
        assert raised.value.retry_after_s > 0


async def test_a_request_waits_for_a_model_that_loads_quickly(tmp_path: Path, tiny_model: Path) -> None:
    """A replica that was just started again may get requests before the load balancer has seen that it is not ready."""
    registry = write_registry(tmp_path, [{"name": "quick", "path": tiny_model}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        assert service.model_named(None).status is Status.LOADING
        assert len((await service.rerank(RerankRequest(**_REQUEST))).results) == 2


async def test_a_request_does_not_wait_for_a_model_beyond_its_deadline(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "slow", "path": tiny_model}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        soon = ScoreOptions(terms=Terms(deadline=perf_counter() + 0.001))
        with pytest.raises(ModelNotReady, match="loading"):
            await service.rerank(RerankRequest(**_REQUEST, options=soon))


async def test_a_hub_that_cannot_be_reached_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = write_registry(tmp_path, [{"name": "far", "path": "hub:org/name@main"}])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = Settings(registry=registry, hub_offline=True, hub_cache=tmp_path / "hub")
    async with running_service(settings, Silent()) as service:
        far = service.model_named("far")
        with pytest.raises(ModelNotReady):
            await far.settled()
        assert "asking again in" in far.reason


async def test_names_aliases_and_the_default_lead_to_their_model(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(
        tmp_path,
        [{"name": "a", "path": tiny_model}, {"name": "b", "path": tiny_model, "aliases": ["org/b"]}],
        default="b",
    )
    async with running_service(Settings(registry=registry), Silent()) as service:
        assert [service.model_named(name).name for name in (None, "a", "b", "org/b")] == ["b", "a", "b", "b"]


@pytest.mark.parametrize("url", ["memcached://here", "memory://?size=3", "redis://?ttl_s=-1", "redis://h:port"])
async def test_an_unusable_cache_url_stops_the_start(tmp_path: Path, tiny_model: Path, url: str) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    with pytest.raises(ConfigError, match="RERANKD_CACHE_URL"):
        async with running_service(Settings(registry=registry, cache_url=url), Silent()):
            pass


async def test_stopping_while_a_model_loads_leaves_nothing_running(tmp_path: Path, tiny_model: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    async with running_service(Settings(registry=registry), Silent()):
        pass
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_what_a_remote_model_is_asked_with_and_where_it_is_shown_to_nobody(tmp_path: Path) -> None:
    url, parameters = "http://user:secret@10.1.2.3:9000/v1/inner", {"top_k": 47}
    options = {"url": url, "model": "inner-model", "parameters": parameters, "max_tokens": 48}
    remote = {"name": "m", "path": ".", "scorer": "generative", "engine": "endpoint", "engine_options": options}
    registry = write_registry(tmp_path, [{**remote, "options": {"template": "rankgpt"}}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        shown = json.dumps(dict((await service.model_named("m").settled()).details))
    assert "endpoint" in shown
    assert not [part for part in ("10.1.2.3", "secret", "inner", "47", "48", "9000") if part in shown]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"engine_options": {"provider_options": {"arena": 1}}}, "provider_options (arena) are for the devices cuda"),
        ({"trust_remote_code": True}, "engine 'onnx' runs no code"),
        ({"engine_options": {"file": "../tiny-bert/model.onnx"}}, "not inside of the model's folder"),
        ({"path": "FILE"}, "is a file; `path` names the model's folder"),
        ({"scorer": "first", "truncation": "chunk"}, "truncation and passages are for scorers of pairs"),
        ({"scorer": "generative", "options": {"template": "rankgpt"}, "max_length": 99}, "an endpoint counts its own"),
    ],
)
async def test_what_would_be_ignored_is_refused(
    tmp_path: Path, tiny_model: Path, model: dict[str, Any], reason: str
) -> None:
    path = tiny_model / "config.json" if model.get("path") == "FILE" else tiny_model
    assert reason in await _reason(tmp_path, {**model, "path": path})
