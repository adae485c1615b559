"""A real server whose models are added, replaced, removed and unloaded under load, by signals and by an admin key."""

import asyncio
import gc
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.domain import RerankRequest
from rerankd.engines.onnx.engine import OnnxEngine
from rerankd.serving.assembly import running_host
from rerankd.telemetry.observer import Silent
from tests.garbage import kept_garbage, of_ours
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready

_QUESTION: Final[dict[str, Any]] = {
    "query": "What is the capital of France?",
    "documents": ["Berlin is the capital of Germany.", "Paris is the capital of France.", "Water is wet."],
}
_ADMIN = {"Authorization": "Bearer operator-secret"}
_CLIENTS = 3


@dataclass
class _Service:
    server: Server
    registry: Path

    def write(self, *models: Mapping[str, Any], default: str | None = None) -> None:
        write_registry(self.registry.parent, models, default=default)

    def ask(self, model: str | None) -> httpx.Response:
        body = _QUESTION if model is None else {**_QUESTION, "model": model}
        return httpx.post(f"{self.server.url}/v2/rerank", json=body, timeout=60)

    def scores(self, model: str | None) -> tuple[float, ...]:
        answer = self.ask(model)
        assert answer.status_code == 200, answer.text
        return _scores(answer)

    def command(self, path: str, *, headers: Mapping[str, str] = _ADMIN) -> httpx.Response:
        return httpx.post(f"{self.server.url}/admin/{path}", headers=dict(headers), timeout=120)

    def models(self) -> dict[str, dict[str, Any]]:
        answer = httpx.get(f"{self.server.url}/admin/models", headers=_ADMIN, timeout=60)
        return {model["name"]: model for model in answer.json()["models"]}

    def log(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.server.log.read_text().splitlines()]
        return [line for line in lines if line["name"] == name]

    def inference_threads(self) -> Counter[str]:
        """Their names, as the system knows them (15 characters)."""
        tasks = Path(f"/proc/{self.server.process.pid}/task")
        names = []
        for task in tasks.iterdir():
            with suppress(FileNotFoundError):  # a thread that ends meanwhile
                names.append((task / "comm").read_text().strip())
        return Counter(name for name in names if name.startswith("infer"))


def _scores(answer: httpx.Response) -> tuple[float, ...]:
    results = sorted(answer.json()["results"], key=lambda result: result["index"])
    return tuple(round(result["relevance_score"], 4) for result in results)


@dataclass
class _Load:
    """Clients that ask one model again and again. `failures` are answers other than 200."""

    scores: Counter[tuple[float, ...]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    last: tuple[float, ...] = ()


@contextmanager
def _under_load(service: _Service, models: Sequence[str | None]) -> Iterator[Mapping[str | None, _Load]]:
    stopping = threading.Event()
    loads = {model: _Load() for model in models}

    def ask(model: str | None) -> None:
        with httpx.Client(base_url=service.server.url, timeout=60) as client:
            body = _QUESTION if model is None else {**_QUESTION, "model": model}
            while not stopping.is_set():
                answer = client.post("/v2/rerank", json=body)
                load = loads[model]
                if answer.status_code == 200:
                    load.last = _scores(answer)
                    load.scores[load.last] += 1
                else:
                    load.failures.append(answer.text)

    threads = [threading.Thread(target=ask, args=(model,)) for model in models for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield loads
    finally:
        stopping.set()
        for thread in threads:
            thread.join(timeout=60)


def _until(happened: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < ends, "did not happen within 60 s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shipped() -> Path:
    return SHIPPED_REGISTRY.parent / "minilm-qa"


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with another activation, which makes its scores other ones."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("other") / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, shipped: Path) -> Iterator[_Service]:
    folder = tmp_path_factory.mktemp("service")
    keys = folder / "admins.toml"
    keys.write_text('[[key]]\nname = "operator"\nkey = "operator-secret"\n', encoding="utf-8")
    keys.chmod(0o600)
    registry = write_registry(folder, [{"name": "main", "path": shipped}, {"name": "tiny", "path": tiny_model}])
    settings = {"RERANKD_ADMIN_KEYS_FILE": str(keys), "RERANKD_CACHE_URL": "none://", "RERANKD_LOG_FORMAT": "json"}
    with rerankd_server(folder, registry, **settings) as server:
        wait_until_ready(server)
        yield _Service(server, registry)


@pytest.fixture(autouse=True)
def as_at_the_start(service: _Service, tiny_model: Path, shipped: Path) -> None:
    """The registry that each test begins with."""
    service.write({"name": "main", "path": shipped}, {"name": "tiny", "path": tiny_model})
    assert service.command("reload").status_code == 200


def test_replacing_adding_and_removing_models_under_load_fails_no_request(
    service: _Service, tiny_model: Path, other: Path, shipped: Path
) -> None:
    before = {name: service.scores(name) for name in ("main", "tiny")}
    with _under_load(service, [None, "tiny"]) as loads:
        _until(lambda: all(load.scores for load in loads.values()))
        service.write(
            {"name": "new", "path": shipped, "max_length": 128},
            {"name": "tiny", "path": other},
            {"name": "both", "stages": ["tiny:2", "new"]},
            default="new",
        )
        answer = service.command("reload")
        moved = {"added": ["new", "both"], "replaced": ["tiny"], "changed": [], "removed": ["main"]}
        assert answer.json() == {**moved, "default": "new"}
        after = {name: service.scores(name) for name in ("new", "tiny")}
        _until(lambda: loads[None].last == after["new"] and loads["tiny"].last == after["tiny"])
        assert service.ask("both").status_code == 200
        assert service.ask("main").status_code == 404
    assert [load.failures for load in loads.values()] == [[], []]
    assert before["tiny"] != after["tiny"]
    assert set(loads["tiny"].scores) == {before["tiny"], after["tiny"]}
    assert set(loads[None].scores) == {before["main"], after["new"]}

    listed = httpx.get(f"{service.server.url}/v1/models", timeout=20).json()["data"]
    assert [model["id"] for model in listed] == ["new", "tiny", "both"]
    assert httpx.get(f"{service.server.url}/info", timeout=20).json()["model_id"] == "new"
    ready = httpx.get(f"{service.server.url}/ready", timeout=20)
    assert (ready.status_code, list(ready.json()["models"])) == (200, ["new", "tiny", "both"])
    metrics = httpx.get(f"{service.server.url}/metrics", timeout=20).text
    assert 'rerank_model_ready{model="main"}' not in metrics
    assert 'rerank_model_ready{model="new"} 1.0' in metrics
    _until(lambda: all(model["versions"]["draining"] == 0 for model in service.models().values()))
    assert {name[:10] for name in service.inference_threads()} <= {"infer-new_", "infer-new", "infer-tiny"}


def test_a_hangup_reads_the_registry_again_and_says_what_it_did(service: _Service, other: Path, shipped: Path) -> None:
    before = service.scores("tiny")
    service.write({"name": "main", "path": shipped, "aliases": ["alias"]}, {"name": "tiny", "path": other})
    service.server.process.send_signal(signal.SIGHUP)
    _until(lambda: service.scores("tiny") != before)
    assert service.ask("alias").status_code == 200
    _until(lambda: service.log("rerankd.audit")[-1]["by"] == "SIGHUP")
    last = service.log("rerankd.audit")[-1]
    assert (last["message"], last["by"], last["replaced"]) == ("reload", "SIGHUP", ["tiny"])
    (told,) = [line for line in service.log("rerankd.serving.assembly") if line.get("models") == ["tiny"]][-1:]
    assert told["available_mb"] > 0
    assert "weights_mb" in told


def test_a_registry_that_cannot_be_served_changes_nothing_and_the_answer_says_why(
    service: _Service, tiny_model: Path, shipped: Path, tmp_path: Path
) -> None:
    before = service.scores("tiny")
    empty = tmp_path / "empty"
    empty.mkdir()
    service.write({"name": "tiny", "path": empty}, {"name": "a", "path": tiny_model}, {"name": "b", "path": "nowhere"})
    refused = service.command("reload")
    assert refused.status_code == 409
    assert refused.json()["error_type"] == "not_changed"
    assert all(part in refused.json()["message"] for part in ("model tiny: ", "model b: no model folder"))
    assert "model a: " not in refused.json()["message"]
    service.registry.write_text("[[model]\n", encoding="utf-8")
    assert "registry.toml" in service.command("reload").json()["message"]
    assert service.scores("tiny") == before
    assert list(service.models()) == ["main", "tiny"]
    _until(lambda: "registry.toml" in service.log("rerankd.audit")[-1]["message"])
    assert [line["by"] for line in service.log("rerankd.audit")[-2:]] == ["operator", "operator"]
    assert "changed nothing" in service.log("rerankd.audit")[-1]["message"]


def test_an_operator_loads_and_unloads_a_model(service: _Service, tiny_model: Path) -> None:
    before = service.scores("tiny")
    unloaded = service.command("models/tiny/unload").json()
    assert (unloaded["status"], unloaded["requests"], unloaded["loaded_at"]) == ("unloaded", None, None)
    _until(lambda: not any(name.startswith("infer-tiny") for name in service.inference_threads()))
    assert httpx.get(f"{service.server.url}/ready", timeout=20).status_code == 200
    assert service.command("models/tiny/unload").status_code == 400
    assert service.scores("tiny") == before, "the request loads it"
    loaded = service.command("models/tiny/load").json()
    assert (loaded["status"], loaded["versions"]["serving"]) == ("ready", 1)
    assert loaded["path"] == str(tiny_model)
    assert service.command("models/nobody/load").status_code == 404
    _until(lambda: "'nobody'" in service.log("rerankd.audit")[-1]["message"])
    audited = [(line["message"], line.get("model"), line["by"]) for line in service.log("rerankd.audit")[-4:]]
    assert audited[0] == ("unload", "tiny", "operator")
    assert audited[1][0].startswith("unload changed nothing: model 'tiny' is not loaded")
    assert audited[2] == ("load", "tiny", "operator")
    assert audited[3][0].startswith("load changed nothing: unknown model 'nobody'")


def test_an_idle_model_comes_back_for_all_requests_that_want_it(
    service: _Service, tiny_model: Path, shipped: Path
) -> None:
    before = service.scores("tiny")
    service.write({"name": "main", "path": shipped}, {"name": "tiny", "path": tiny_model, "idle_unload_s": 0.2})
    assert service.command("reload").json()["replaced"] == ["tiny"]
    _until(lambda: service.models()["tiny"]["status"] == "unloaded")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(service.scores, ["tiny"] * 8)) == {before}
    _until(lambda: service.models()["tiny"]["status"] == "unloaded")


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), (_ADMIN, 200)],
)
def test_commands_need_an_admin_key(service: _Service, headers: Mapping[str, str], status: int) -> None:
    assert service.command("reload", headers=headers).status_code == status
    assert httpx.get(f"{service.server.url}/admin/models", headers=dict(headers), timeout=20).status_code == status


def test_keys_are_read_again_on_command(service: _Service) -> None:
    file = service.registry.parent / "admins.toml"
    before = file.read_text(encoding="utf-8")
    told_before = len(_told_of_keys(service))
    file.write_text(before + '[[key]]\nname = "deputy"\nkey = "deputy-secret"\n', encoding="utf-8")
    try:
        assert service.command("keys/reload").json() == {"added": ["deputy"], "removed": [], "changed": []}
        deputy = {"Authorization": "Bearer deputy-secret"}
        file.write_text("[[key", encoding="utf-8")
        assert service.command("keys/reload", headers=deputy).status_code == 409
    finally:
        file.write_text(before, encoding="utf-8")
        assert service.command("keys/reload").json()["removed"] == ["deputy"]
    assert service.command("models/tiny/load", headers=deputy).status_code == 401
    _until(lambda: len(_told_of_keys(service)) == told_before + 3)
    assert [line["by"] for line in _told_of_keys(service)[told_before:]] == ["operator", "deputy", "operator"]
    assert "deputy-secret" not in service.server.log.read_text()


def _told_of_keys(service: _Service) -> list[dict[str, Any]]:
    return [line for line in service.log("rerankd.audit") if "reload of keys" in line["message"]]


async def test_a_replaced_model_is_freed_before_the_garbage_collector_comes(tmp_path: Path, tiny_model: Path) -> None:
    def engines() -> list[OnnxEngine]:
        # `isinstance` would ask an object for its class, and some of torch's answer with a warning
        return [one for one in gc.get_objects() if type(one) is OnnxEngine]

    gc.collect()
    # Other tests' engines are held here, so that none of them is freed meanwhile.
    others, model = engines(), {"name": "tiny", "path": tiny_model}
    settings = Settings(registry=write_registry(tmp_path, [model]), cache_url="none://")
    async with running_host(settings, Silent()) as (service, host):
        await service.model_named("tiny").settled()
        await service.rerank(RerankRequest(**_QUESTION))
        with kept_garbage() as garbage:
            for change in ({"revision": "2"}, {"revision": "3"}):
                write_registry(tmp_path, [{**model, **change}])
                assert (await host.reload()).replaced == ("tiny",)
                await service.rerank(RerankRequest(**_QUESTION))
                while host.hosted("tiny").versions["draining"]:  # noqa: ASYNC110 - what it waits for tells nobody
                    await asyncio.sleep(0.01)
            await host.unload("tiny")
            while host.hosted("tiny").versions:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            assert len(engines()) == len(others)
        assert not {"OnnxEngine", "CrossEncoder", "LoadedModel"} & of_ours(garbage)


def test_memory_and_threads_do_not_grow_with_reloads(service: _Service, shipped: Path, tiny_model: Path) -> None:
    process = psutil.Process(service.server.process.pid)
    service.scores("main")

    def settle() -> None:
        _until(lambda: all(model["versions"]["draining"] == 0 for model in service.models().values()))

    def reload(number: int) -> int:
        service.write({"name": "main", "path": shipped}, {"name": "tiny", "path": tiny_model, "revision": str(number)})
        assert service.command("reload").json()["replaced"] == ["tiny"]
        service.scores("tiny")
        settle()
        return int(process.memory_info().rss)

    sizes = [reload(number) for number in range(12)]
    assert sum(name.startswith("infer-tiny") for name in service.inference_threads().elements()) <= (
        os.cpu_count() or 1
    )
    assert sizes[-1] - sizes[5] < 8 << 20, sizes
